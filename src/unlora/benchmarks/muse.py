"""MUSE and its miniature: C1 to C4 of one request, of requests of growing size (C5), and of four in sequence (C6)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.muse_mini_data import FOLDS, generate, write_benchmark
from unlora.benchmarks.builtin.muse_mini_models import muse_mini_models, muse_recipe
from unlora.benchmarks.interface import (
    ALL,
    Benchmark,
    Options,
    Scoring,
    Values,
    built_in_problems,
    named_retrained,
    needed,
    with_set,
)
from unlora.common.errors import NOT_AVAILABLE, Problem, unknown_name
from unlora.common.files import atomic_path
from unlora.data.sources import Record
from unlora.evals.membership.leakage import read_scores
from unlora.evals.muse import WANTED, load_muse, summarise_muse

# Each split: configuration and split of what is forgotten. C5's requests are independent, C6's build on each other.
REQUESTS = {
    "forget": ("raw", "forget"),
    **{f"scal_{number}": ("scal", fold) for number, fold in enumerate(FOLDS, 1)},
    **{f"sust_{number}": ("sust", fold) for number, fold in enumerate(FOLDS, 1)},
}
AFTER = {f"sust_{number}": f"sust_{number - 1}" for number in range(2, len(FOLDS) + 1)}
NEEDS = {"privleak": "it is against a model trained without the forget set; name one, or its log, by --retrained"}


def read(path: Path, retrained: Path | None) -> Values:
    """C1 to C4 of a log of `unlora evaluate-muse`."""
    metrics = summarise_muse(read_scores(path), None if retrained is None else read_scores(retrained, "retrained"))
    return {name: None if metrics[name] == NOT_AVAILABLE else metrics[name] for name in WANTED}


def muse_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The request's text in chunks of MUSE's length, with the first retain part as regulariser."""
    config, forget = REQUESTS[split]
    return {
        "model_name_or_path": options.model,
        "max_length": 2048,
        "forget_data": options.data,
        "forget_name": config,
        "forget_split": forget,
        "retain_data": options.data,
        "retain_name": "raw",
        "retain_split": "retain1",
        "seed": seed,
        "importance_seed": seed,
    }


def muse_problems(options: Options) -> list[Problem]:
    """MUSE needs a model that knows the forget set, and its data; one retrained model serves all splits."""
    problems = needed(options, "name the model that read the forget set", "name a folder, or muse-bench/MUSE-News")
    known = (ALL, *REQUESTS)
    return problems + [unknown_name("retrained", split, known) for split in options.retrained if split not in known]


def scoring_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The same sets for every split."""
    return {"data": options.data}


def rows(flags: Mapping[str, Any]) -> list[Record]:
    """The rows of all sets, each with the name of its set."""
    return with_set(load_muse(flags["data"]))


def mini_data(options: Options, seed: int) -> str:
    """The folder of the miniature of this seed."""
    folder = options.folder / "muse-mini" / f"seed-{seed}"
    if not folder.exists():
        with atomic_path(folder) as partial:
            write_benchmark(generate(seed), partial)
    return str(folder)


def mini_models(options: Options, seed: int) -> dict[str, Path]:
    """The original and the retrained model of this seed."""
    return muse_mini_models(options.recipe or muse_recipe(seed))


def mini_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The settings, tuned on seed 3 (docs/benchmarks/muse.md)."""
    own = Options(options.folder, str(mini_models(options, seed)["original"]), mini_data(options, seed))
    return {
        **muse_flags(own, split, seed),
        "learning_rate": 6e-4,
        "num_train_epochs": 20,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0.1,
        "save_strategy": "no",
    }


def mini_retrained(options: Options, split: str, seed: int) -> str:
    """The model that read the retain parts alone."""
    return str(mini_models(options, seed)["retrained"])


def mini_scoring_flags(options: Options, split: str, seed: int) -> dict[str, Any]:
    """The miniature's sets, in larger batches: its texts are short."""
    return {"data": mini_data(options, seed), "eval_batch_size": 32}


SETTINGS = frozenset({"ds_size", "eval_batch_size"})
MUSE = Benchmark(
    tuple(REQUESTS),
    muse_problems,
    muse_flags,
    named_retrained,
    read,
    WANTED.get,
    Scoring("evaluate-muse", SETTINGS, scoring_flags, rows, reads_retrained=True),
    AFTER,
    NEEDS,
)
MUSE_MINI = Benchmark(
    tuple(REQUESTS),
    built_in_problems,
    mini_flags,
    mini_retrained,
    read,
    WANTED.get,
    Scoring("evaluate-muse", SETTINGS, mini_scoring_flags, rows, reads_retrained=True),
    AFTER,
    NEEDS,
)
