"""The numbers of a run, each with its uncertainty: what the pages show and the verdict rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlora.evals import metrics
from unlora.evals.tofu import TASKS, UTILITY, example_values, forget_truth_ratios
from unlora.report.names import METRICS, SETS
from unlora.report.read import Run
from unlora.report.scores import Scores
from unlora.report.statistics import (
    Columns,
    Estimate,
    Values,
    difference,
    exactly,
    interval,
    mean_estimate,
    quotient,
    utility_draws,
)

# The level of every test.
LEVEL = 0.05
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axes:
    """The forget-utility plane of a benchmark.

    Args:
        x, y: the names of the axes.
        better: 1 where more of y is better, -1 where less is; 0 where only a retrained model's value could say.
        points: by model its x and y.
        level: of y, where a test draws its line.
    """

    x: str
    y: str
    better: int
    points: dict[str, tuple[Estimate, Estimate]]
    level: float | None = None


@dataclass(frozen=True)
class Summary:
    """Everything that is computed from the logs of evaluations; what they cannot give is missing or None.

    Args:
        examples: by set how many were evaluated.
        means: {set: {metric: {model: mean over examples}}}.
        utility: by model TOFU's model utility, the harmonic mean of `terms` means, or that of another benchmark.
        utility_name: which.
        terms: how many; 0 of another benchmark.
        kept: the unlearned model's utility over the original's.
        ratios: by model the forget set's geometric truth ratios, [examples].
        quality: by model forget quality, the p-value against the retrained model's truth ratios.
        fall: forget-answer probability, unlearned minus original.
        gap: the same, unlearned minus retrained.
        scores: {metric of another benchmark: {model: value}}.
        axes: what the plane is drawn of.
    """

    examples: dict[str, int]
    means: dict[str, dict[str, dict[str, Estimate]]]
    utility: dict[str, Estimate]
    utility_name: str
    terms: int
    kept: Estimate | None
    ratios: dict[str, Values]
    quality: dict[str, float]
    fall: Estimate | None
    gap: Estimate | None
    scores: dict[str, dict[str, Estimate]]
    axes: Axes | None

    def log_quality(self, model: str) -> float | None:
        """log10 of the forget quality."""
        return math.log10(self.quality[model]) if model in self.quality else None

    def mean(self, name: str, metric: str, model: str) -> Estimate | None:
        """A mean, if it is known."""
        return self.means.get(name, {}).get(metric, {}).get(model)


def summarise_run(run: Run) -> Summary:
    """Computes everything once."""
    values = {
        model: {name: example_values(name, run.task(model, name)) for name in TASKS if run.task(model, name)}
        for model in run.logs
    }
    means = {name: _means(name, values) for name in SETS if any(name in sets for sets in values.values())}
    columns = {model: _utility_columns(sets) for model, sets in values.items()}
    draws = {model: utility_draws(terms) for model, terms in columns.items() if terms}
    utility = {model: interval(_utility(columns[model]), drawn) for model, drawn in draws.items()}
    ratios = {model: forget_truth_ratios(model, log) for model, log in run.logs.items() if _has_ratios(run, model)}
    known = ratios.get("retrained")
    quality = {} if known is None else {model: metrics.forget_quality(ratios[model], known) for model in ratios}
    probabilities = {model: sets["forget"]["probability"] for model, sets in values.items() if _asked(sets)}
    other = {model: of_model.utility for model, of_model in run.scores.items() if of_model.utility is not None}
    kept = _kept(utility, draws)
    if not utility and {"original", "unlearned"} <= other.keys():
        kept = quotient(other["unlearned"], other["original"])
    return Summary(
        examples={name: max(len(_first(sets[name])) for sets in values.values() if name in sets) for name in means},
        means=means,
        utility=utility or {model: value.estimate() for model, value in other.items()},
        utility_name="model utility" if utility else _axis_name(run.scores, 0),
        terms=sum(map(len, columns["unlearned"].values())) if "unlearned" in columns else 0,
        kept=kept,
        ratios=ratios,
        quality=quality,
        fall=_difference(run, probabilities, "original"),
        gap=_difference(run, probabilities, "retrained"),
        scores=_by_metric(run.scores),
        axes=_axes(run, utility, quality, means),
    )


def _axis_name(scores: Mapping[str, Scores], place: int) -> str:
    return next((of_model.axes[place] for of_model in scores.values()), "")


def _by_metric(scores: Mapping[str, Scores]) -> dict[str, dict[str, Estimate]]:
    names = dict.fromkeys(name for of_model in scores.values() for name in of_model.metrics)
    return {
        name: {
            model: of_model.metrics[name].estimate() for model, of_model in scores.items() if name in of_model.metrics
        }
        for name in names
    }


def _axes(
    run: Run,
    utility: Mapping[str, Estimate],
    quality: Mapping[str, float],
    means: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
) -> Axes | None:
    """Of TOFU's evaluation where it has a forget quality, else of another benchmark, else of the probability alone."""
    if utility and "unlearned" in quality:
        logs = {model: exactly(math.log10(quality[model])) for model in utility if model in quality}
        points = {model: (utility[model], log) for model, log in logs.items()}
        return Axes("model utility", "log₁₀ forget quality", 1, points, math.log10(LEVEL))
    points = {
        model: (of_model.utility.estimate(), of_model.forgetting.estimate())
        for model, of_model in run.scores.items()
        if of_model.utility is not None and of_model.forgetting is not None
    }
    if points:
        return Axes(_axis_name(run.scores, 0), _axis_name(run.scores, 1), -1, points)
    probability = means.get("forget", {}).get("probability", {})
    points = {model: (utility[model], probability[model]) for model in utility if model in probability}
    return Axes("model utility", "probability of the answers to forget", 0, points) if points else None


def _means(name: str, values: dict[str, dict[str, dict[str, Values]]]) -> dict[str, dict[str, Estimate]]:
    known = {model: sets[name] for model, sets in values.items() if name in sets}
    return {
        metric: {model: mean_estimate(columns[metric]) for model, columns in known.items() if metric in columns}
        for metric in METRICS
    }


def p_value(value: float) -> str:
    """Two significant digits, or a power of ten."""
    if value >= 1e-3:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(RAISED)}"


def smallest_distance(size: int, other: int) -> float:
    """Distance between two empirical distributions from which on the Kolmogorov-Smirnov test is significant (5 %).

    The asymptotic critical value, √(−ln(0.05/2)/2) · √((n+m)/(n·m)).
    """
    return math.sqrt(-math.log(0.025) / 2) * math.sqrt((size + other) / (size * other))


def largest_distance(one: Values, other: Values) -> tuple[float, float]:
    """The Kolmogorov-Smirnov statistic, and where between the two empirical distributions it lies."""
    places = np.sort(np.concatenate([one, other]))
    gaps = np.abs(_share_below(one, places) - _share_below(other, places))
    return float(gaps.max()), float(places[gaps.argmax()])


def _share_below(values: Values, places: Values) -> Values:
    return np.searchsorted(np.sort(values), places, side="right") / len(values)


def _utility_columns(sets: dict[str, dict[str, Values]]) -> Columns:
    columns = {
        name: {metric: values[metric] for metric in UTILITY if metric in values}
        for name, values in sets.items()
        if name != "forget"
    }
    return {name: terms for name, terms in columns.items() if terms}


def _utility(columns: Columns) -> float:
    return metrics.model_utility([values.mean() for terms in columns.values() for values in terms.values()])


def _kept(utility: dict[str, Estimate], draws: dict[str, Values]) -> Estimate | None:
    if not {"original", "unlearned"} <= utility.keys() or not (draws["original"] > 0).all():
        return None
    value = utility["unlearned"].value / utility["original"].value
    return interval(value, draws["unlearned"] / draws["original"])


def _has_ratios(run: Run, model: str) -> bool:
    return {"avg_paraphrased_loss", "average_perturb_loss"} <= run.task(model, "forget").keys()


def _asked(sets: dict[str, Any]) -> bool:
    return "probability" in sets.get("forget", {})


def _first(values: dict[str, Values]) -> Values:
    return next(iter(values.values()))


def _difference(run: Run, probabilities: dict[str, Values], other: str) -> Estimate | None:
    if not {"unlearned", other} <= probabilities.keys():
        return None
    one, two = (probabilities[model] for model in ("unlearned", other))
    return difference(one, two, paired=prompts(run, "unlearned", "forget") == prompts(run, other, "forget"))


def prompts(run: Run, model: str, name: str) -> list[str]:
    """What the model was asked, in the order of the examples."""
    column = run.task(model, name).get("generated_text", {})
    return [column[index][0] for index in sorted(column, key=int)]
