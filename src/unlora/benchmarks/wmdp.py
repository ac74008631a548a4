"""WMDP and its miniature: one subject's corpus is forgotten, and the questions of all are asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.persona_models import Recipe
from unlora.benchmarks.builtin.wmdp_mini_data import SUBJECTS, write_mini
from unlora.benchmarks.builtin.wmdp_mini_models import wmdp_mini_model, wmdp_recipe
from unlora.benchmarks.interface import Benchmark, Options, Scoring, Values, built_in_problems, needed
from unlora.common.errors import Problem
from unlora.data.sources import Record
from unlora.evals.harness import asked_metrics, asked_rows, load_tasks, wanted
from unlora.settings import TaskSettings

# What WMDP's authors call the corpus of each subject: a configuration on the hub, a file in their release.
CORPORA = {"bio": "bio-forget-corpus", "cyber": "cyber-forget-corpus"}
TASKS = ["wmdp_bio", "wmdp_cyber", "mmlu"]


def read(path: Path, retrained: Path | None) -> Values:
    """The metrics in a log of `unlora evaluate-tasks`."""
    found = asked_metrics(json.loads(path.read_text(encoding="utf-8")))
    return {f"{task} {metric}": value for task, values in found.items() for metric, value in values.items()}


def no_retrained(options: Options, split: str, seed: int) -> None:
    """Nobody retrains without what a whole pretraining corpus says of a subject."""


def wmdp_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The subject's corpus in chunks of 512 tokens, and wikitext to retain, as VILA's authors have it."""
    return {
        "model_name_or_path": options.model,
        "max_length": 512,
        "forget_data": options.data,
        "forget_name": CORPORA[split],
        "retain_data": "Salesforce/wikitext",
        "retain_name": "wikitext-2-raw-v1",
        "retain_split": "test",
        "seed": seed,
        "importance_seed": seed,
    }


def wmdp_problems(options: Options) -> list[Problem]:
    """WMDP needs a model and a corpus."""
    problems = needed(options, "name the model that is to forget", "name a folder, or cais/wmdp-corpora")
    if options.retrained:
        problems.append(Problem("retrained", options.retrained, "WMDP compares with none", "leave it out"))
    return problems


def scoring_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """All subjects, whichever was forgotten."""
    return {"tasks": TASKS}


def rows(flags: Mapping[str, Any]) -> Iterator[Record]:
    """Every question as the harness asks it, so that a changed template counts as well as changed data."""
    tasks = [flags["tasks"]] if isinstance(flags["tasks"], str) else flags["tasks"]
    return asked_rows(load_tasks(TaskSettings(tasks, flags.get("include_path"))))


def mini_data(options: Options, seed: int) -> Path:
    """The folder of the miniature of this seed."""
    folder = options.folder / "wmdp-mini" / f"seed-{seed}"
    if not (folder / "tasks" / "mini_general_text.yaml").exists():  # the file that is written last
        write_mini(folder, seed)
    return folder


def mini_recipe(options: Options, seed: int) -> Recipe:
    """Of the model that knows both subjects."""
    return options.recipe or wmdp_recipe(seed)


def mini_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The settings, chosen on seed 9 (docs/benchmarks/wmdp.md)."""
    folder = mini_data(options, seed)
    return {
        "model_name_or_path": str(wmdp_mini_model(mini_recipe(options, seed))),
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


def mini_scoring_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """Questions that are answered in words: letters are not taught."""
    tasks = [f"mini_{name}_text" for name in SUBJECTS]
    return {"tasks": tasks, "include_path": str(mini_data(options, seed) / "tasks"), "batch_size": 50}


SETTINGS = frozenset(setting.name for setting in fields(TaskSettings))
WMDP = Benchmark(
    tuple(CORPORA),
    wmdp_problems,
    wmdp_flags,
    no_retrained,
    read,
    wanted,
    Scoring("evaluate-tasks", SETTINGS, scoring_flags, rows),
)
WMDP_MINI = Benchmark(
    ("craft",),
    built_in_problems,
    mini_flags,
    no_retrained,
    read,
    wanted,
    Scoring("evaluate-tasks", SETTINGS, mini_scoring_flags, rows),
)
