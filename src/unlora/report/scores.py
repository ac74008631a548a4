"""Logs of `unlora evaluate-muse` and `unlora evaluate-tasks`: what is known of runs that forget texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unlora.evals import harness, muse
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
        log: as the command wrote it.
        retrained: that of the retrained model, for MUSE's privacy leakage.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: neither command wrote it.
    """
    return _tasks(log) if "tasks" in log else _muse(log, retrained)


def _muse(log: Any, retrained: Any) -> Scores:
    summary = muse.summarise_muse(log["scores"], None if retrained is None else retrained["scores"])
    metrics = {name: _percent(log["scores"][part]["rougeL"]) for name, part in muse.ROUGE_METRICS.items()}
    leakage = summary["privleak"]
    if leakage != muse.NOT_AVAILABLE:
        attack = muse.PRIVLEAK_ATTACKS[0]
        theirs = muse.summarise_muse(retrained["scores"])["membership"][attack]["auc"]
        error = 100 * summary["membership"][attack]["standard_error"] / (1 - theirs)
        metrics["privleak"] = Measured(leakage, error)
    elif isinstance(log["metrics"]["privleak"], int | float):  # against a model whose log is not here
        metrics["privleak"] = Measured(float(log["metrics"]["privleak"]), 0.0)
    return Scores(
        benchmark="MUSE",
        metrics={name: metrics[name] for name in muse.WANTED if name in metrics},
        utility=metrics["knowmem_r"],
        forgetting=metrics["knowmem_f"],
        axes=("knowledge of the retain set (knowmem_r)", "knowledge of the forget set (knowmem_f)"),
        areas={name: Measured(row["auc"], row["standard_error"]) for name, row in summary["membership"].items()},
        examples=summary["examples"],
    )


def _percent(values: Any) -> Measured:
    array = 100 * np.asarray(values, dtype=np.float64)
    return Measured(float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0)


def _tasks(log: Any) -> Scores:
    first: dict[str, list[Measured]] = {"low": [], "high": []}
    metrics = {}
    for task, values in harness.asked_metrics(log).items():
        for place, (metric, value) in enumerate(values.items()):
            if value is not None:
                error = log["tasks"][task].get(f"{metric}_stderr")
                metrics[f"{task} {metric}"] = Measured(float(value), float(error or 0.0))
                if place == 0:
                    first[harness.wanted(task)].append(metrics[f"{task} {metric}"])
    return Scores(
        benchmark="lm-evaluation-harness",
        metrics=metrics,
        utility=_mean(first["high"]),
        forgetting=_mean(first["low"]),
        axes=("accuracy in what is to be kept", "accuracy in what is to be forgotten"),
        areas={},
        examples={task: int(log["tasks"][task]["n"]) for task in harness.asked_metrics(log)},
    )


def _mean(parts: list[Measured]) -> Measured | None:
    """Over tasks, whose questions are not the same."""
    if not parts:
        return None
    error = sum(part.standard_error**2 for part in parts) ** 0.5
    return Measured(sum(part.value for part in parts) / len(parts), error / len(parts))
