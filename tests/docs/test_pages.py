"""In the documentation, internal links resolve, commands and flags exist, and the reference has every public name."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from functools import cache
from urllib.parse import urlsplit

import pytest

import unlora
from helpers.pages import PAGES, ROOT, anchors, blocks, commands, links
from unlora.cli import COMMANDS, main
from unlora.importance import INITIALISERS
from unlora.losses.table import LOSSES, RETAIN_LOSSES

IDS = [str(page.relative_to(ROOT)) for page in PAGES]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_within_the_documentation_lead_to_a_file_and_a_heading(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        if "://" in target or "_generated" in path:  # generated pages are checked when the site is built
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_that_lead_out_are_well_formed(page):
    for target in links(page):
        if "://" in target:
            parts = urlsplit(target)
            assert (parts.scheme, parts.username, parts.port) == ("https", None, None), target
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), target
            if parts.netloc == "arxiv.org":
                assert re.fullmatch(r"/abs/\d{4}\.\d{4,5}", parts.path), target


def test_the_headings_of_a_page_have_the_names_that_github_gives_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# When to stop (`stopping.py`)\n\ntext\n\n## What's MIN-K %?\n\n```bash\n# no heading\n```\n")
    assert anchors(page) == {"when-to-stop-stoppingpy", "whats-min-k-"}


@cache
def flags_of(command: str) -> frozenset[str]:
    """Return the flags in a command's help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([command, "--help_all"])
    return frozenset(re.findall(r"--([A-Za-z][\w-]*)", shown.getvalue())) | {"help", "help_all"}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_and_flag_that_a_page_shows_exists(page):
    for command, flags in commands(page):
        assert command in COMMANDS
        forwarded = ("unlearn", "evaluate") if command == "bench" else ()
        assert set(flags) <= flags_of(command).union(*map(flags_of, forwarded))


def test_commands_are_found_with_their_flags(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`unlora ls losses --markdown`\n\n```bash\nx=1 unlora unlearn \\\n  --r 8 | tail --lines 3\n```\n")
    assert sorted(commands(page)) == [("ls", ["markdown"]), ("unlearn", ["r"])]


@pytest.mark.parametrize("name", unlora.__all__)
def test_every_public_name_is_in_the_reference(name):
    entry = getattr(unlora, name)
    assert f"`{name} <{entry.__module__}.{entry.__qualname__}>`" in REFERENCE
    assert getattr(importlib.import_module(entry.__module__), name) is entry


def test_the_reference_lists_nothing_else():
    assert re.findall(r"^\| \{py:\w+\}`(\w+) <", REFERENCE, re.MULTILINE) != []
    assert set(re.findall(r"^\| \{py:\w+\}`(\w+) <", REFERENCE, re.MULTILINE)) == set(unlora.__all__)


def test_every_paper_that_a_page_links_is_in_the_index():
    index = ROOT / "docs" / "papers.md"  # it also includes a generated table of the losses and initialisers
    choices = [*LOSSES.values(), *RETAIN_LOSSES.values(), *INITIALISERS.values()]
    known = {number for choice in choices for number in re.findall(r"arXiv (\d{4}\.\d{5})", choice.paper)}
    linked = {page: {target for target in links(page) if "arxiv.org" in target} for page in PAGES}
    for page in PAGES:
        assert linked[page] <= linked[index] | {f"https://arxiv.org/abs/{number}" for number in known}, page


def test_blocks_carry_their_language_line_and_remark(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n<!-- not run: needs a GPU -->\n\n```bash\nls\n```\n\n<!-- printed -->\n\n```text\nout\n```\n"
    )
    one, other = blocks(page)
    assert (one.language, one.code, one.line, one.reason, one.printed) == ("bash", "ls\n", 5, "needs a GPU", False)
    assert (other.language, other.reason, other.printed) == ("text", None, True)
