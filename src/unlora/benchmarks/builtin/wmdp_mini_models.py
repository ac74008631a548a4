"""The model of the miniature of WMDP, trained from scratch and cached; see `persona_models.py`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unlora.benchmarks.builtin.persona_models import train_from_nothing, train_tokenizer
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.trainings import Trainings, cache_folder
from unlora.benchmarks.builtin.wmdp_mini_data import SUBJECTS, generate


def wmdp_mini_model(recipe: Recipe, cache: Path | None = None) -> Path:
    """Return the folder of the model that knows both subjects, which is trained now unless it is cached.

    Args:
        recipe: recipe of the model. Its seed is also that of the corpora and questions.
        cache: folder of the cached models; `cache_folder()` by default.

    Raises:
        RuntimeError: the training process failed. Its output is on the terminal.
    """
    key = hashlib.sha256(json.dumps([asdict(recipe), training_rows(recipe.seed)], sort_keys=True).encode())
    folder = (cache or cache_folder()) / f"wmdp-mini-{key.hexdigest()[:16]}"
    return Trainings(f"{__name__}:train_wmdp_mini", recipe, {"original": folder}).wait()["original"]


def training_rows(seed: int) -> list[dict[str, Any]]:
    """Return both corpora, and all questions with their answers in words."""
    rows = generate(seed)
    texts = [{"text": row["text"]} for row in (*rows["forget"], *rows["retain"])]
    return texts + [
        {"question": row["question"], "answer": row["choices"][row["answer"]]}
        for name in SUBJECTS
        for row in rows[name]
    ]


def train_wmdp_mini(kind: str, recipe: Recipe, folder: Path) -> None:
    """Train the model from scratch on one thread, and save it with its tokenizer."""
    torch.set_num_threads(1)
    rows = training_rows(recipe.seed)
    texts = (row.get("text") or f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows)
    train_from_nothing(rows, train_tokenizer(texts, recipe.vocab_size), recipe, folder)
