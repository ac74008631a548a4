"""What `unlora bench` knows of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.persona_models import Recipe
from unlora.common.errors import Problem
from unlora.data.sources import Record

# The retrained model of every split, where one is meant for all.
ALL = "all"
Values = dict[str, float | None]


@dataclass(frozen=True)
class Options:
    """What a user says of the benchmark itself.

    Args:
        folder: of the bench; what cells share is kept there.
        model: the model that is to forget (built-in benchmarks make their own).
        data: the benchmark's data: a folder or a dataset on the hub.
        retrained: {split or "all": evaluation log (.json) of the retrained model, or the model itself}.
        recipe: of a built-in benchmark's models; the standard one for each seed if not given.
    """

    folder: Path
    model: str | None = None
    data: str | None = None
    retrained: dict[str, str] = field(default_factory=dict)
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Scoring:
    """A command that measures a finished run, and models without one.

    Args:
        command: its name.
        settings: names of those of its flags that hold for all cells and are the user's to set.
        flags: (options, split, seed) -> the flags that the benchmark sets.
        rows: (all flags but the model's) -> what a model is asked.
        reads_retrained: whether it takes the retrained model's log.
    """

    command: str
    settings: frozenset[str]
    flags: Callable[[Options, str, int], dict[str, Any]]
    rows: Callable[[Mapping[str, Any]], Iterable[Record]]
    reads_retrained: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Args:
        splits: the names of its splits, each after the one that it goes on from.
        check: what is wrong with the options, before anything is loaded.
        flags: (options, split, seed) -> flags of `unlora unlearn`; prepares models and data on first use.
        retrained: (options, split, seed) -> log or model of the retrained model, if there is one.
        read: (log, log of the retrained model) -> {column: value}, None for what could not be computed.
        wanted: column -> "high", "low" or "zero": which value is best; None where that cannot be said.
        scoring: what measures a run; None where `unlora unlearn` does.
        after: {split: the split whose request it goes on from}.
        needs: {column: why it may not be available, and what to do about it}.
    """

    splits: tuple[str, ...]
    check: Callable[[Options], list[Problem]]
    flags: Callable[[Options, str, int], dict[str, Any]]
    retrained: Callable[[Options, str, int], str | None]
    read: Callable[[Path, Path | None], Values]
    wanted: Callable[[str], str | None]
    scoring: Scoring | None = None
    after: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)


def named_retrained(options: Options, split: str, seed: int) -> str | None:
    """What the user named for this split, or for all."""
    return options.retrained.get(split, options.retrained.get(ALL))


def needed(options: Options, model_fix: str, data_fix: str) -> list[Problem]:
    """The problems of a benchmark whose model and data are the user's to name."""
    given = {"model_name_or_path": (options.model, model_fix), "data": (options.data, data_fix)}
    return [Problem(name, "", "the benchmark needs it", fix) for name, (value, fix) in given.items() if not value]


def built_in_problems(options: Options) -> list[Problem]:
    """The problems of a benchmark that makes its own models and data."""
    given = {"model_name_or_path": options.model, "data": options.data, "retrained": options.retrained}
    reason = "a built-in benchmark makes its own"
    return [Problem(name, value, reason, "leave it out") for name, value in given.items() if value]


def with_set(sets: Mapping[str, Iterable[Record]]) -> list[Record]:
    """The rows of all sets, each with the name of its set."""
    return [{"set": name, **row} for name, rows in sets.items() for row in rows]
