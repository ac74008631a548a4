"""Take the screenshots in report.md and chat.md: both pages of the quickstart's run, in Chromium.

`python docs/screenshots.py RUN` writes them into `docs/_static`. The chat answers its first prompt of the forget set.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

STATIC = Path(__file__).parent / "_static"
SIZE = {"width": 1280, "height": 900}


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Serve `unlora chat`, and yield its address."""
    command = [sys.executable, "-m", "unlora", "chat", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield next(line.strip() for line in process.stdout if line.startswith("http://"))
    finally:
        process.terminate()
        process.wait()


def take_report(page: Page, run: Path) -> None:
    """Take the first screen of the report: the verdict and the four cards."""
    page.goto((run / "report.html").resolve().as_uri())
    page.screenshot(path=STATIC / "report.png")


def take_chat(page: Page, run: Path) -> None:
    """Take a question of the forget set, both answers, and the tokens of the reference answer."""
    with served(run) as address:
        page.goto(address)
        page.get_by_label("Token probabilities").check()
        page.locator(".gallery-item").first.click()
        page.get_by_role("list", name="Unlearned model's answer, token by token").wait_for()
        page.screenshot(path=STATIC / "chat.png", full_page=True)


def main(run: Path) -> None:
    """Take both screenshots."""
    chromium = os.environ.get("UNLORA_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        take_report(page, run)
        take_chat(page, run)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
