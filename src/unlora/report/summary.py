"""The numbers of a run, each with its uncertainty: what the pages show and the verdict rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlora.evals import metrics
from unlora.evals.tofu import TASKS, UTILITY, example_values, forget_truth_ratios
from unlora.report.read import Run
from unlora.report.statistics import Columns, Estimate, Values, difference, interval, mean_estimate, utility_draws

# What is shown of a set, in this order.
SHOWN = {"probability": "probability", "rougeL_recall": "ROUGE-L recall", "truth_ratio": "truth ratio"}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SETS = {"forget": "Forget set", "retain": "Retain set", "real_authors": "Real authors", "world_facts": "World facts"}


@dataclass(frozen=True)
class Summary:
    """Everything that is computed from the evaluation logs; what they cannot give is missing or None.

    Args:
        examples: by set how many were evaluated.
        means: {set: {metric: {model: mean over examples}}}.
        utility: by model TOFU's model utility, the harmonic mean of `terms` means.
        terms: how many.
        kept: the unlearned model's utility over the original's.
        ratios: by model the forget set's geometric truth ratios, [examples].
        quality: by model forget quality, the p-value against the retrained model's truth ratios.
        fall: forget-answer probability, unlearned minus original.
        gap: the same, unlearned minus retrained.
    """

    examples: dict[str, int]
    means: dict[str, dict[str, dict[str, Estimate]]]
    utility: dict[str, Estimate]
    terms: int
    kept: Estimate | None
    ratios: dict[str, Values]
    quality: dict[str, float]
    fall: Estimate | None
    gap: Estimate | None

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
    return Summary(
        examples={name: max(len(_first(sets[name])) for sets in values.values() if name in sets) for name in means},
        means=means,
        utility=utility,
        terms=sum(map(len, columns["unlearned"].values())) if "unlearned" in columns else 0,
        kept=_kept(utility, draws),
        ratios=ratios,
        quality=quality,
        fall=_difference(run, probabilities, "original"),
        gap=_difference(run, probabilities, "retrained"),
    )


def _means(name: str, values: dict[str, dict[str, dict[str, Values]]]) -> dict[str, dict[str, Estimate]]:
    known = {model: sets[name] for model, sets in values.items() if name in sets}
    return {
        metric: {model: mean_estimate(columns[metric]) for model, columns in known.items() if metric in columns}
        for metric in SHOWN
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
