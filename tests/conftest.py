"""Fixtures: tiny random models, a tokenizer, small runs, and TOFU's data if available. None needs the network."""

from __future__ import annotations

import gc
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from helpers.models import make_tokenizer, save_tiny_llama, tiny_config
from helpers.runs import (
    FORGET,
    RECORDED_FORGET,
    RETAIN,
    SECOND,
    SECOND_ROWS,
    UNSEEN,
    flags,
    recorded_settings,
    write_rows,
)
from helpers.warm import warm_python
from unlora.cli import main

settings.register_profile("untimed", deadline=None)  # examples may be slow on a busy machine
settings.load_profile("untimed")
# The models are so tiny that more threads would only wait for each other.
# The environment variable is for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Exclude the objects of the libraries from the garbage collection that accelerate runs after each training."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def warm_programs(tmp_path_factory) -> Iterator[Path]:
    """Yield a folder with the programs `python`, which becomes `sys.executable`, and `unlora`, for tests to start."""
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    with warm_python(tmp_path_factory.mktemp("programs"), owner) as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with TOFU and its published logs, or skip the test if there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UNLORA_TEST_DATA", default))
    if not (folder / "tofu" / "full.jsonl").is_file():
        pytest.skip("TOFU's data is not at hand: set UNLORA_TEST_DATA to a folder that holds tofu/ and tofu_logs/")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a small byte-level BPE tokenizer with pad and eos tokens, but without a chat template."""
    return make_tokenizer()


@pytest.fixture
def browser_page() -> Iterator[Any]:
    """Yield a page (Playwright's `Page`) of a headless Chromium with a fresh profile.

    `page.errors` collects console errors, uncaught exceptions, dialogs and crashes as they happen.
    """
    path = os.environ.get("UNLORA_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not at hand: install it, or set UNLORA_CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    quiet = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
    off = ("disable-background-networking", "disable-component-update")
    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in (*quiet, *off)]
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        page: Any = browser.new_page()
        page.errors = []
        page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: (page.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("crash", lambda: page.errors.append("crash"))
        yield page
        browser.close()


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedModel]:
    """Return a function that makes seeded random models with two layers, in evaluation mode."""

    def make(name: str, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(name, len(tokenizer))).eval()

    return make


@pytest.fixture
def registries():
    """Remove the entries that a test adds to the tables of choices, such as losses and teachers, after the test."""
    from unlora.benchmarks import BENCHMARKS
    from unlora.common import plugins
    from unlora.importance import INITIALISERS
    from unlora.losses import LOSSES, RETAIN_LOSSES
    from unlora.teachers import TEACHERS

    tables: list[MutableMapping] = [
        BENCHMARKS,
        INITIALISERS,
        LOSSES,
        RETAIN_LOSSES,
        TEACHERS,
        plugins.LOADED,
        plugins.ORIGINS,
    ]
    kept = [set(table) for table in tables]
    yield
    for table, before in zip(tables, kept, strict=True):
        for name in set(table) - before:
            del table[name]


@pytest.fixture
def heard_interrupts():
    """Let the processes that a test starts receive SIGINT, even if a shell started pytest in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return the folder of a saved tiny model. Tests must not change it."""
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path):
    """Return a folder with a forget set and a retain set."""
    write_rows(tmp_path / "data" / "forget.jsonl", FORGET)
    write_rows(tmp_path / "data" / "retain.jsonl", RETAIN)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def finished(model_folder, tmp_path_factory):
    """Return a folder with a copy of the model, the data and a finished run. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(model_folder, folder / "model")
    write_rows(folder / "data" / "forget.jsonl", RECORDED_FORGET)
    write_rows(folder / "data" / "retain.jsonl", RETAIN)
    write_rows(folder / "data" / "unseen.jsonl", UNSEEN)
    assert (
        main(["unlearn", *flags(folder / "model", folder / "data", folder / "run", **recorded_settings(folder))]) == 0
    )
    return folder


@pytest.fixture
def work(finished, tmp_path):
    """Return a copy of `finished` that tests may change. The paths in its configuration point to the copy."""
    shutil.copytree(finished, tmp_path / "work")
    config = tmp_path / "work" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path / "work")))
    return tmp_path / "work"


@pytest.fixture(scope="session")
def plain_run(model_folder, tmp_path_factory):
    """Return a run with the default `flags`, its output, and the base's weights before it. Tests must not change it."""
    folder, printed = tmp_path_factory.mktemp("plain"), io.StringIO()
    write_rows(folder / "data" / "forget.jsonl", FORGET)
    write_rows(folder / "data" / "retain.jsonl", RETAIN)
    weights = (model_folder / "model.safetensors").read_bytes()
    with redirect_stdout(printed):
        assert main(["unlearn", *flags(model_folder, folder / "data", folder / "run")]) == 0
    return folder / "run", printed.getvalue(), weights


@pytest.fixture(scope="session")
def first_run(model_folder, tmp_path_factory):
    """Return a finished run that changes the model measurably, with settings that a second request inherits."""
    folder = tmp_path_factory.mktemp("first")
    write_rows(folder / "data" / "forget.jsonl", FORGET)
    write_rows(folder / "data" / "retain.jsonl", RETAIN)
    settings = {"dtype": "float32", "prompt_format": "base", "learning_rate": 1e-2}
    assert main(["unlearn", *flags(model_folder, folder / "data", folder / "run", **settings)]) == 0
    return folder / "run"


@pytest.fixture
def second(data):
    """Write the rows of a second request, and return the flags by which it differs from the first."""
    write_rows(data / "second.jsonl", SECOND_ROWS)
    return SECOND
