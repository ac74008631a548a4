"""A harmless miniature of WMDP with generated questions and its own model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.wmdp_mini_data import SUBJECTS, write_mini
from unlora.benchmarks.interface import Options, built_in_problems
from unlora.benchmarks.wmdp import Wmdp
from unlora.common.errors import Problem


def wmdp_recipe(seed: int) -> Recipe:
    """Return the smallest recipe whose model answers the questions in words."""
    return Recipe(seed=seed, epochs=24, batch_size=8)


@dataclass(frozen=True)
class WmdpMini(Wmdp):
    """Questions about an invented craft and an invented geography.

    Args:
        recipe: recipe of its model. By default, the standard one for each seed.
    """

    recipe: Recipe | None = None

    name = "wmdp-mini"
    needs = "pip install 'unlora[wmdp]'"
    splits = ("craft",)

    def problems(self, options: Options) -> list[Problem]:
        """Return a problem for each option that a built-in benchmark does not have."""
        return built_in_problems(options)

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the settings that were chosen on seed 9 (docs/benchmarks/wmdp.md)."""
        from unlora.benchmarks.builtin.wmdp_mini_models import wmdp_mini_model

        folder = _data(options, seed)
        return {
            "model_name_or_path": str(wmdp_mini_model(self.recipe or wmdp_recipe(seed))),
            "forget_data": str(folder / "forget.jsonl"),
            "retain_data": str(folder / "retain.jsonl"),
            "learning_rate": 1e-3,
            "max_steps": 40,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "weight_decay": 0.0,
            "save_strategy": "no",
            "seed": seed,
        }

    def retrained(self, options: Options, split: str, seed: int) -> None:
        """Return None, because no number is compared with a retrained model's."""

    def evaluation(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the tasks that are answered in words, because the model is not trained to answer with letters."""
        tasks = [f"mini_{name}_text" for name in SUBJECTS]
        return {"tasks": tasks, "include_path": str(_data(options, seed) / "tasks"), "batch_size": 50}


def _data(options: Options, seed: int) -> Path:
    """Return the folder of this seed's corpora and questions, which is written on first use and after a move.

    The tasks name their questions by absolute path, because the harness would look for a relative one in the current
    directory.
    """
    folder = options.folder / "wmdp-mini" / f"seed-{seed}"
    last = folder / "tasks" / "mini_general_text.yaml"  # the file that is written last
    if not last.exists() or str(folder.resolve()) not in last.read_text(encoding="utf-8"):
        write_mini(folder, seed)
    return folder


WMDP_MINI = WmdpMini()
