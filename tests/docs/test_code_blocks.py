"""The code blocks of the documentation run unchanged, and print the output that the pages show."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from helpers.pages import PAGES, ROOT, RUN, Block, blocks
from unlora.benchmarks.builtin.persona_data import generate
from unlora.common.files import write_jsonl

RUNNABLE = [page for page in PAGES if any(block.language in RUN and not block.reason for block in blocks(page))]
# Tolerances for printed numbers. Rounding differs between machines, and changes the results of training.
ABSOLUTE, RELATIVE = 0.1, 0.1
NUMBER = r"[-−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory of a page's code. Its model and data files have the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained("my-model")
    tokenizer.save_pretrained("my-model")
    sets = generate(people=10, holdout_people=2)
    for name, rows in {"forget": sets["forget"], "retain": sets["retain"][:24], "unseen": sets["holdout"]}.items():
        write_jsonl(f"{name}.jsonl", [{key: row[key] for key in ("question", "answer")} for row in rows])
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("registries")  # pages register their own losses and initialisers
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, folder):
    names: dict[str, object] = {"__name__": "page"}
    shown = ""
    for block in blocks(page):
        if block.printed:
            check_printed(block, shown)
        elif block.language in RUN and not block.reason:
            shown = run_python(page, block, names) if block.language == "python" else run_bash(page, block, folder)


def run_python(page: Path, block: Block, names: dict[str, object]) -> str:
    """Run a block with the names that the blocks before it defined, and return what it printed."""
    shown = io.StringIO()
    code = "\n" * block.line + block.code  # so that tracebacks show the line number in the page
    with contextlib.redirect_stdout(shown):
        exec(compile(code, str(page), "exec"), names)
    return shown.getvalue()


def run_bash(page: Path, block: Block, folder: Path) -> str:
    """Run a block as a script that ends at the first failing command, and return what it printed."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of `warm_programs`
    environment = os.environ | {"PATH": programs, "COLUMNS": "100", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{page}:{block.line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_printed(block: Block, shown: str) -> None:
    """Check that every line that the page shows was printed, in this order. Numbers may differ by the tolerances."""
    lines = iter(shown.splitlines())
    for wanted in block.code.splitlines():
        if wanted.strip() != "...":
            assert any(same_line(wanted, line) for line in lines), f"line {block.line}: {wanted!r} not in\n{shown}"


def same_line(one: str, other: str) -> bool:
    """Return whether two lines have the same words and about the same numbers. Spaces and table borders are ignored."""
    words = [re.sub(r"[\s│┃─━]+", " ", re.sub(NUMBER, "0", line)).strip() for line in (one, other)]
    numbers = [[float(number.replace("−", "-")) for number in re.findall(NUMBER, line)] for line in (one, other)]
    return words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], abs=ABSOLUTE, rel=RELATIVE)


def test_lines_are_compared_by_words_and_rough_numbers():
    assert same_line("│ forget set │ 0.95 │ 12.0 │", "│ forget set    │ 0.99 │ 12.9 │")
    assert not same_line("forget set 0.95", "forget set 0.75")
    assert not same_line("forget set 0.95", "retain set 0.95")


def test_what_is_not_run_says_why_and_nothing_else_is_marked():
    for page in PAGES:
        for block in blocks(page):
            place = f"{page}:{block.line}"
            assert not block.remark.startswith("<!-- not run") or block.reason, place
            assert not block.reason or block.language in RUN, place
            assert not block.printed or block.language == "text", place
