"""Logs of benchmarks with their own scoring: what is known of runs that forget texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlora.benchmarks import Measured as Number
from unlora.benchmarks import benchmark_of
from unlora.report.statistics import Measured


@dataclass(frozen=True)
class Scores:
    """One model's log.

    Args:
        benchmark: whose it is.
        metrics: by name, accuracies as shares and MUSE's in percent.
        utility, forgetting: the benchmark's plane; less of the latter is more forgetting.
        axes: the names of these two.
        areas: by membership attack the area under the ROC curve; MUSE's alone.
        examples: by set or task how many were asked.
    """

    benchmark: str
    metrics: dict[str, Measured]
    utility: Measured | None
    forgetting: Measured | None
    axes: tuple[str, str]
    areas: dict[str, Measured]
    examples: dict[str, int]


def parse_scores(log: Any, retrained: Any = None) -> Scores:
    """What a log says.

    Args:
        log: as `unlora evaluate` wrote it.
        retrained: that of the retrained model, for MUSE's privacy leakage.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: no benchmark wrote it.
    """
    benchmark = benchmark_of(log)
    reading = benchmark.read(log, retrained)
    utility, forgetting = benchmark.plane or ("", "")
    return Scores(
        benchmark=benchmark.title or benchmark.name,
        metrics={name: _measured(value) for name, value in reading.values.items() if value is not None},
        utility=_optional(reading.get(utility)),
        forgetting=_optional(reading.get(forgetting)),
        axes=(benchmark.metric(utility).label, benchmark.metric(forgetting).label),
        areas={name: _measured(area) for name, area in reading.areas.items()},
        examples=reading.examples,
    )


def _measured(number: Number) -> Measured:
    return Measured(number.value, number.standard_error)


def _optional(number: Number | None) -> Measured | None:
    return None if number is None else _measured(number)
