"""TOFU, and persona in its schema: `unlora unlearn` evaluates both itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.persona import DATA, persona_settings, write_sets
from unlora.benchmarks.builtin.persona_models import Recipe, persona_models
from unlora.benchmarks.interface import ALL, Benchmark, Options, Values, built_in_problems, named_retrained, needed
from unlora.common.errors import Problem, unknown_name
from unlora.common.files import atomic_path
from unlora.evals import read_log, summarise
from unlora.evals.tofu import BENCHMARK_SETS

SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
# Column -> set and metric in a model's summary.
SET_COLUMNS = {
    "forget probability": ("forget", "probability"),
    "forget ROUGE-L recall": ("forget", "rougeL_recall"),
    "retain probability": ("retain", "probability"),
}
# Of the other columns nearness to the retrained model would be best, which may not be known.
WANTED = {"log10 forget quality": "high", "model utility": "high"}
QUALITY_NEEDS = (
    "it is against a model trained without the forget set; name one, or its log, for each split by --retrained, "
    "such as forget10=retain90.json"
)


def read(path: Path, retrained: Path | None, benchmark: str = "tofu") -> Values:
    """The columns of a log in TOFU's format; one that lacks sets of the benchmark has no model utility."""
    retain_log = None if retrained is None else read_log(retrained, "retrained")
    summary = summarise(read_log(path), retain_log, BENCHMARK_SETS[benchmark])
    values = {"log10 forget quality": summary["log10_forget_quality"], "model utility": summary["model_utility"]}
    sets = summary["sets"]
    return values | {column: sets.get(name, {}).get(metric) for column, (name, metric) in SET_COLUMNS.items()}


def persona_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The quickstart's settings on people and models of this seed."""
    folder = options.folder / "persona" / f"seed-{seed}"
    if not (folder / DATA).exists():
        with atomic_path(folder / DATA) as unfinished:
            write_sets(unfinished, seed)
    model = persona_models(options.recipe or Recipe(seed=seed))["original"]
    return persona_settings(model, folder, seed)


def persona_retrained(options: Options, split: str, seed: int) -> str:
    """The model that never knew the people to forget."""
    return str(persona_models(options.recipe or Recipe(seed=seed))["retrained"])


def tofu_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """TOFU's split, with its perturbed sets."""
    return {
        "model_name_or_path": options.model,
        "forget_data": options.data,
        "forget_name": split,
        "retain_data": options.data,
        "retain_name": SPLITS[split],
        "eval_data": options.data,
        "eval_forget_name": f"{split}_perturbed",
        "seed": seed,
        "importance_seed": seed,
    }


def tofu_problems(options: Options) -> list[Problem]:
    """TOFU needs a fine-tuned model and its data, and a retrained model for each split."""
    problems = needed(options, "name the model fine-tuned on TOFU", "name a folder, or locuslab/TOFU")
    if ALL in options.retrained:
        reason, fix = "each split has a retrained model of its own", "write it as forget10=log.json"
        problems.append(Problem("retrained", options.retrained[ALL], reason, fix))
    others = [split for split in options.retrained if split not in {*SPLITS, ALL}]
    return problems + [unknown_name("retrained", split, SPLITS) for split in others]


read_persona = partial(read, benchmark="persona")
PERSONA = Benchmark(("forget",), built_in_problems, persona_flags, persona_retrained, read_persona, WANTED.get)
TOFU = Benchmark(
    tuple(SPLITS),
    tofu_problems,
    tofu_flags,
    named_retrained,
    read,
    WANTED.get,
    needs={"log10 forget quality": QUALITY_NEEDS},
)
