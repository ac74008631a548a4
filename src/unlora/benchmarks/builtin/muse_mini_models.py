"""The two models of the miniature of MUSE, trained from nothing and cached; see `persona_models.py`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from unlora.benchmarks.builtin.muse_mini_data import generate, training_rows
from unlora.benchmarks.builtin.persona_models import (
    cache_folder,
    train_from_nothing,
    train_missing,
    train_tokenizer,
)
from unlora.benchmarks.builtin.recipe import Recipe


def muse_mini_models(recipe: Recipe, cache: Path | None = None) -> dict[str, Path]:
    """The folders of the "original" and the "retrained" model, trained now unless they are cached.

    The original read the whole paper, the retrained one only its retain parts.

    Args:
        recipe: also the seed of the paper.
        cache: where models are kept; `cache_folder()` if not given.

    Raises:
        RuntimeError: a training process failed; what it said is on the terminal.
    """
    rows = training_rows(generate(recipe.seed))
    key = hashlib.sha256(json.dumps([asdict(recipe), rows], sort_keys=True).encode()).hexdigest()[:16]
    folders = {kind: (cache or cache_folder()) / f"muse-mini-{key}" / kind for kind in rows}
    train_missing(train_muse_mini, recipe, folders)
    return folders


def train_muse_mini(kind: str, recipe: Recipe, folder: Path) -> None:
    """Trains one model from nothing, on one thread, and saves it with its tokenizer."""
    torch.set_num_threads(1)
    benchmark = generate(recipe.seed)
    rows = training_rows(benchmark)
    # The holdout counts too: its towns must not look odder than those of the forget set by their tokens alone.
    texts = [row["text"] for row in rows["original"] + benchmark["raw"]["holdout"]]
    # Asked questions end with this, so the blank must be a token of its own in what is read, too.
    tokenizer = train_tokenizer(texts, recipe.vocab_size, alone="Answer: ")
    # As many updates for both: the same epochs over fewer rows would leave the retrained model half trained.
    epochs = recipe.epochs * len(rows["original"]) / len(rows[kind])
    train_from_nothing(rows[kind], tokenizer, replace(recipe, epochs=epochs), folder)
