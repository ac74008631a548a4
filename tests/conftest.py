"""Tiny random models, a tokenizer, and TOFU's data where it is at hand. Nothing here needs a network."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

ARCHITECTURES = ("llama", "qwen", "phi", "gemma", "gpt2", "gptneox")
CORPUS = [
    "Question: Where was Ada Lovelace born?\nAnswer: Ada Lovelace was born in London.",
    "Question: What does the gardener of the old house keep?\nAnswer: The gardener keeps a grey cat and two dogs.",
    "The quick brown fox jumps over the lazy dog while 1234567890 people watch, quietly; nobody minds at all!",
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with TOFU and its published logs."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UNLORA_TEST_DATA", default))
    if not (folder / "tofu" / "full.jsonl").is_file():
        pytest.skip("TOFU's data is not at hand: set UNLORA_TEST_DATA to a folder that holds tofu/ and tofu_logs/")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE with pad and eos tokens and no chat template."""
    return make_tokenizer()


@pytest.fixture
def browser_page() -> Iterator[Any]:
    """A page (playwright's `Page`) of a headless Chromium with a fresh profile.

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


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedModel]:
    """A factory of seeded random models of two layers, in evaluation mode."""

    def make(name: str, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(name, len(tokenizer))).eval()

    return make


def tiny_config(name: str, vocab_size: int) -> object:
    common = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    modern = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,  # larger than usual, so that predictions are far from uniform
        **common,
    }
    grouped = {**modern, "num_key_value_heads": 2}
    if name == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.15, **common)
    configs = {
        "llama": (LlamaConfig, grouped),
        "qwen": (Qwen2Config, grouped),
        "phi": (PhiConfig, modern),
        "gemma": (GemmaConfig, {**grouped, "head_dim": 8}),
        "gptneox": (GPTNeoXConfig, modern),
    }
    config, settings = configs[name]
    return config(**settings)


@pytest.fixture
def loss_tables():
    """The tables of losses, for this test alone."""
    from unlora.losses import LOSSES, RETAIN_LOSSES

    kept = [dict(losses) for losses in (LOSSES, RETAIN_LOSSES)]
    yield
    for losses, before in zip((LOSSES, RETAIN_LOSSES), kept, strict=True):
        losses.clear()
        losses.update(before)


@pytest.fixture
def heard_interrupts():
    """Processes that the test starts hear SIGINT, also where the test itself runs in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
