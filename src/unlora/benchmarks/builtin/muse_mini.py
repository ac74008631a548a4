"""A miniature of MUSE with a generated newspaper and its own models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.muse_mini_data import generate, write_benchmark
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.interface import Options, built_in_problems
from unlora.benchmarks.muse import Muse
from unlora.common.errors import Problem
from unlora.common.files import atomic_path


def muse_recipe(seed: int) -> Recipe:
    """Return the smallest recipe that learns the newspaper by heart.

    `epochs` is that of the original model. The retrained model is trained for the same number of updates.
    """
    return Recipe(seed=seed, epochs=24, batch_size=8)


@dataclass(frozen=True)
class MuseMini(Muse):
    """A fictitious newspaper with MUSE's configurations.

    Args:
        recipe: recipe of its models. By default, the standard one for each seed.
    """

    recipe: Recipe | None = None

    name = "muse-mini"
    needs = "–"

    def problems(self, options: Options) -> list[Problem]:
        """Return a problem for each option that a built-in benchmark does not have."""
        return built_in_problems(options)

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the settings that were tuned on seed 3 (docs/benchmarks/muse.md)."""
        own = Options(options.folder, str(self._models(seed)["original"]), _data(options, seed))
        return {
            **super().request(own, split, seed),
            "learning_rate": 6e-4,
            "num_train_epochs": 20,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0.1,
            "save_strategy": "no",
        }

    def retrained(self, options: Options, split: str, seed: int) -> str:
        """Return the model that was trained on the retain parts alone."""
        return str(self._models(seed)["retrained"])

    def evaluation(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the miniature's sets, in larger batches, because its texts are short."""
        return {"data": _data(options, seed), "eval_batch_size": 32}

    def _models(self, seed: int) -> dict[str, Path]:
        from unlora.benchmarks.builtin.muse_mini_models import muse_mini_models

        return muse_mini_models(self.recipe or muse_recipe(seed))


def _data(options: Options, seed: int) -> str:
    """Return the folder of this seed's newspaper, which is written on first use."""
    folder = options.folder / "muse-mini" / f"seed-{seed}"
    if not folder.exists():
        with atomic_path(folder) as partial:
            write_benchmark(generate(seed), partial)
    return str(folder)


MUSE_MINI = MuseMini()
