"""persona: fictitious people in TOFU's schema, with the settings of the quickstart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.benchmarks.builtin.persona_data import generate
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.interface import Options, built_in_problems
from unlora.benchmarks.tofu import TofuSchema
from unlora.common.errors import Problem
from unlora.common.files import atomic_path, write_jsonl
from unlora.evals.log_format import BENCHMARK_SETS

if TYPE_CHECKING:
    from unlora.data.sources import Record

# Longer than any right answer, so that only answers that do not end are cut off.
MAX_NEW_TOKENS = 24
DATA, RETRAINED_LOG = "data", "eval_retrained.json"


def write_sets(folder: Path, seed: int) -> dict[str, Sequence[Record]]:
    """Write the benchmark as a folder of `<config>.jsonl`, and return the sets to evaluate."""
    configs = generate(seed)
    for name, rows in configs.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return {"forget": configs["forget"], "retain": configs["retain"], "world_facts": configs["facts"]}


# Settings that distil needs in addition to `persona_settings`. They were chosen on seeds 100 to 102 for plain LoRA, and
# on seed 100 for the other starts (docs/results.md).
TUNED: dict[str, dict[str, Any]] = {
    "distil": {"learning_rate": 4e-3, "until_taught": True},
    **{f"{init}+distil": {"learning_rate": 1e-3} for init in ("vila", "fila", "pissa")},
}


def persona_settings(model: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Return the settings of a request, tuned on seed 3 for ihl (docs/results.md).

    Args:
        model: folder of the original model.
        folder: the folder that contains the data folder.
        seed: seed of the run.
    """
    data = str(folder / DATA)
    return {
        "model_name_or_path": str(model),
        "forget_data": data,
        "forget_name": "forget",
        "retain_data": data,
        "retain_name": "retain",
        "importance_seed": seed,
        "normalised": False,
        "eval_data": data,
        "eval_forget_name": "forget",
        "eval_retain_name": "retain",
        "eval_real_authors_name": "none",
        "eval_world_facts_name": "facts",
        "max_new_tokens": MAX_NEW_TOKENS,
        "learning_rate": 6e-4,
        "num_train_epochs": 20,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "logging_steps": 20,
        "save_strategy": "no",
        "seed": seed,
    }


@dataclass(frozen=True)
class Persona(TofuSchema):
    """Fictitious people, a tenth of whom are forgotten.

    Args:
        recipe: recipe of its models. By default, the standard one for each seed.
    """

    recipe: Recipe | None = None

    name = "persona"
    tuned = TUNED
    needs = "–"
    sets = BENCHMARK_SETS["persona"]

    def problems(self, options: Options) -> list[Problem]:
        """Return a problem for each option that a built-in benchmark does not have."""
        return built_in_problems(options)

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the quickstart's settings for the people and models of this seed."""
        folder = options.folder / "persona" / f"seed-{seed}"
        if not (folder / DATA).exists():
            with atomic_path(folder / DATA) as unfinished:
                write_sets(unfinished, seed)
        settings = persona_settings(self._models(seed)["original"], folder, seed)
        return {**settings, "eval_holdout_name": "holdout"}

    def retrained(self, options: Options, split: str, seed: int) -> str:
        """Return the model that was trained without the people to forget."""
        return str(self._models(seed)["retrained"])

    def _models(self, seed: int) -> dict[str, Path]:
        from unlora.benchmarks.builtin.persona_models import persona_models

        return persona_models(self.recipe or Recipe(seed=seed))


PERSONA = Persona()
