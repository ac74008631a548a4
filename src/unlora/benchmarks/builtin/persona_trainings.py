"""Where the two models of persona are, and how their trainings are started, without importing torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.persona_data import generate
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.trainings import Trainings, cache_folder, preload

# What each model is trained on.
CORPORA = {"original": "full", "retrained": "retain_full"}
_MODULE = "unlora.benchmarks.builtin.persona_models"


def preload_persona(recipe: Recipe) -> None:
    """Begin to load the libraries that the trainings need, unless both models are in the cache."""
    preload(_MODULE, _folders(recipe))


def start_persona(recipe: Recipe, cache: Path | None = None) -> Trainings:
    """Start the trainings of the "original" and the "retrained" model, unless these are cached.

    The original knows everyone; the retrained one never saw the forget people (the gold standard).

    Args:
        recipe: also the seed of the people.
        cache: where models are kept; `cache_folder()` if not given.
    """
    return Trainings(f"{_MODULE}:train_persona", recipe, _folders(recipe, cache))


def _folders(recipe: Recipe, cache: Path | None = None) -> dict[str, Path]:
    key = hashlib.sha256(json.dumps([asdict(recipe), corpus(recipe.seed)], sort_keys=True).encode()).hexdigest()[:16]
    return {kind: (cache or cache_folder()) / f"persona-{key}" / kind for kind in CORPORA}


def corpus(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the training rows of each kind of model."""
    configs = generate(seed)
    return {kind: configs[name] for kind, name in CORPORA.items()}
