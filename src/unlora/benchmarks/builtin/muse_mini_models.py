"""The two models of the miniature of MUSE, trained from scratch and cached; see `persona_models.py`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from unlora.benchmarks.builtin.muse_mini_data import generate, training_rows
from unlora.benchmarks.builtin.persona_models import train_from_nothing, train_tokenizer
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.trainings import Trainings, cache_folder


def muse_mini_models(recipe: Recipe, cache: Path | None = None) -> dict[str, Path]:
    """Return the folders of the "original" and the "retrained" model, which are trained now unless they are cached.

    The original model is trained on the whole newspaper, the retrained one only on its retain parts.

    Args:
        recipe: recipe of the models. Its seed is also that of the newspaper.
        cache: folder of the cached models; `cache_folder()` by default.

    Raises:
        RuntimeError: a training process failed. Its output is on the terminal.
    """
    rows = training_rows(generate(recipe.seed))
    key = hashlib.sha256(json.dumps([asdict(recipe), rows], sort_keys=True).encode()).hexdigest()[:16]
    folders = {kind: (cache or cache_folder()) / f"muse-mini-{key}" / kind for kind in rows}
    return Trainings(f"{__name__}:train_muse_mini", recipe, folders).wait()


def train_muse_mini(kind: str, recipe: Recipe, folder: Path) -> None:
    """Train one model from scratch on one thread, and save it with its tokenizer."""
    torch.set_num_threads(1)
    benchmark = generate(recipe.seed)
    rows = training_rows(benchmark)
    # The tokenizer is also trained on the holdout. Otherwise, its towns could be told apart by their rare tokens alone.
    texts = [row["text"] for row in rows["original"] + benchmark["raw"]["holdout"]]
    # Prompts end with "Answer: ", so the space must be a separate token in the training text as well.
    tokenizer = train_tokenizer(texts, recipe.vocab_size, alone="Answer: ")
    # Both models get the same number of updates. With equal epochs over fewer rows, the retrained one would learn less.
    epochs = recipe.epochs * len(rows["original"]) / len(rows[kind])
    train_from_nothing(rows[kind], tokenizer, replace(recipe, epochs=epochs), folder)
