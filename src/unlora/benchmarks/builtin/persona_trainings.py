"""The folders of the two models of persona, and the start of their trainings. Importing this does not import torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.persona_data import generate
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.trainings import Trainings, cache_folder, preload

# Model -> the configuration of persona that it is trained on.
CORPORA = {"original": "full", "retrained": "retain_full"}
_MODULE = "unlora.benchmarks.builtin.persona_models"


def preload_persona(recipe: Recipe) -> None:
    """Start to load the libraries that the trainings need, unless both models are cached."""
    preload(_MODULE, _folders(recipe))


def start_persona(recipe: Recipe, cache: Path | None = None) -> Trainings:
    """Start the trainings of the "original" and the "retrained" model, unless these are cached.

    The original model is trained on all people. The retrained model, the gold standard, is trained without the forget
    people.

    Args:
        recipe: recipe of the models. Its seed is also that of the people.
        cache: folder of the cached models; `cache_folder()` by default.
    """
    return Trainings(f"{_MODULE}:train_persona", recipe, _folders(recipe, cache))


def _folders(recipe: Recipe, cache: Path | None = None) -> dict[str, Path]:
    key = hashlib.sha256(json.dumps([asdict(recipe), corpus(recipe.seed)], sort_keys=True).encode()).hexdigest()[:16]
    return {kind: (cache or cache_folder()) / f"persona-{key}" / kind for kind in CORPORA}


def corpus(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the training rows of each model."""
    configs = generate(seed)
    return {kind: configs[name] for kind, name in CORPORA.items()}
