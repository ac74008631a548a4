"""The numbers of a run, each with its uncertainty. The pages and the verdict are based on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from unlora.benchmarks import OWN_SETS, Benchmark, Measured
from unlora.evals import metrics
from unlora.evals.log_format import TASKS
from unlora.evals.summary import UTILITY, example_values, forget_truth_ratios, has_truth_ratios
from unlora.report.answers import Count, Counts, answer_counts
from unlora.report.names import METRICS, SETS
from unlora.report.read import Run
from unlora.report.statistics import (
    Columns,
    Estimate,
    Values,
    difference,
    estimate_of,
    exactly,
    interval,
    mean_estimate,
    quotient,
    utility_draws,
)

# The significance level of every test.
LEVEL = 0.05


@dataclass(frozen=True)
class Axes:
    """The forgetting-utility plane.

    Args:
        x, y: labels of the axes; x is utility, y is forgetting.
        better: 1 if a larger y is better, -1 if a smaller one is, 0 if this depends on the retrained model's value.
        points: {model: (x, y)}.
        level: if y is a p-value or its logarithm, the value below which the test is significant.
    """

    x: str
    y: str
    better: int
    points: dict[str, tuple[Estimate, Estimate]]
    level: float | None = None


@dataclass(frozen=True)
class Summary:
    """Everything that is computed from evaluation logs. Values that the logs do not provide are missing or None.

    Args:
        examples: {set: number of evaluated examples}.
        means: {set: {metric: {model: mean over examples}}}.
        utility: {model: utility}. TOFU's model utility, the harmonic mean of `terms` means, or another benchmark's.
        utility_name: label of this utility.
        terms: number of means in the model utility; 0 for another benchmark.
        measured_on: the rows that the utility was measured on, in words; empty if they are not known.
        kept: the unlearned model's utility divided by the original's. It may be above 1.
        ratios: {model: geometric truth ratios of the forget set, [examples]}.
        quality: {model: forget quality}, the p-value against the retrained model's truth ratios.
        fall: probability of the forget answers, unlearned minus original.
        gap: probability of the forget answers, unlearned minus retrained.
        scores: {metric of another benchmark: {model: value}}.
        counts: {kind of answer: {set: {model: count}}}.
        axes: the forgetting-utility plane that is drawn.
    """

    examples: dict[str, int]
    means: dict[str, dict[str, dict[str, Estimate]]]
    utility: dict[str, Estimate]
    utility_name: str
    terms: int
    measured_on: str
    kept: Estimate | None
    ratios: dict[str, Values]
    quality: dict[str, float]
    fall: Estimate | None
    gap: Estimate | None
    scores: dict[str, dict[str, Estimate]]
    counts: Counts
    axes: Axes | None

    @property
    def share_kept(self) -> Estimate | None:
        """The share of the original's utility that was kept, at most 1: unlearning does not add abilities."""
        if self.kept is None:
            return None
        value, low, high = (min(end, 1.0) for end in (self.kept.value, self.kept.low, self.kept.high))
        return replace(self.kept, value=value, low=low, high=high)

    def count(self, kind: str, name: str, model: str) -> Count | None:
        """Return the number of answers of this kind in a set, or None if it is not known."""
        return self.counts.get(kind, {}).get(name, {}).get(model)

    def log_quality(self, model: str) -> float | None:
        """Return log10 of the forget quality, or None if it is not known."""
        return math.log10(self.quality[model]) if model in self.quality else None

    def mean(self, name: str, metric: str, model: str) -> Estimate | None:
        """Return the mean of a metric over a set, or None if it is not known."""
        return self.means.get(name, {}).get(metric, {}).get(model)


def summarise_run(run: Run) -> Summary:
    """Compute all numbers of a run."""
    values = {
        model: {name: example_values(name, run.task(model, name)) for name in TASKS if run.task(model, name)}
        for model in run.logs
    }
    means = {name: _means(name, values) for name in SETS if any(name in sets for sets in values.values())}
    columns = {model: terms for model, sets in values.items() if (terms := _utility_columns(sets))}
    draws = {model: utility_draws(terms) for model, terms in columns.items()}
    utility = {
        model: interval(_utility(columns[model]), drawn, _fewest(columns[model])) for model, drawn in draws.items()
    }
    ratios = {model: forget_truth_ratios(model, log) for model, log in run.logs.items() if _has_ratios(run, model)}
    known = ratios.get("retrained")
    quality = {} if known is None else {model: metrics.forget_quality(ratios[model], known) for model in ratios}
    other = {model: x for model, (x, _) in _measured_plane(run).items() if x is not None}
    kept = _kept(utility, draws, columns)
    if not utility and {"original", "unlearned"} <= other.keys():
        kept = quotient(other["unlearned"], other["original"])
    benchmark = OWN_SETS if utility or run.benchmark is None else run.benchmark
    labels = _plane_labels(benchmark)
    return Summary(
        examples={name: max(_size(sets[name]) for sets in values.values() if name in sets) for name in means},
        means=means,
        utility=utility or {model: _on_plane(benchmark, 0, value) for model, value in other.items()},
        utility_name=labels[0],
        terms=sum(map(len, columns.get("unlearned", {}).values())),
        measured_on=_measured_on(run, values.get("unlearned", {})),
        kept=kept,
        ratios=ratios,
        quality=quality,
        fall=_difference(run, values, "original"),
        gap=_difference(run, values, "retrained"),
        scores=_by_metric(run),
        counts=answer_counts(run),
        axes=_axes(run, utility, quality, means),
    )


def _measured_on(run: Run, sets: Columns) -> str:
    """Describe the rows that TOFU's model utility was measured on, and how many of them were trained on."""

    def rows(name: str) -> str:
        size, trained = _size(sets[name]), run.trained_on.get(name)
        part = {None: "", 0: ", none of them trained on", size: ", all of them trained on too"}
        return f"{size} rows of the {SETS[name]}" + part.get(trained, f", {trained} of them trained on too")

    return " and ".join(rows(name) for name in SETS if name != "forget" and name in sets)


def _plane_labels(benchmark: Benchmark) -> tuple[str, str]:
    utility, forgetting = benchmark.plane or ("", "")
    return benchmark.metric(utility).label, benchmark.metric(forgetting).label


def _measured_plane(run: Run) -> dict[str, tuple[Measured | None, Measured | None]]:
    """Return (utility, forgetting) of each model, the two numbers of the benchmark's plane."""
    if run.benchmark is None or run.benchmark.plane is None:
        return {}
    utility, forgetting = run.benchmark.plane
    return {model: (reading.get(utility), reading.get(forgetting)) for model, reading in run.readings.items()}


def _on_plane(benchmark: Benchmark, axis: int, value: Measured) -> Estimate:
    """Return a coordinate (0: utility, 1: forgetting) with its interval, clipped to the range of its metric."""
    return estimate_of(value, benchmark.metric((benchmark.plane or ("", ""))[axis]).limits)


def _by_metric(run: Run) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for model, reading in run.readings.items():
        for name, value in reading.values.items():
            if value is not None and run.benchmark is not None:
                found.setdefault(name, {})[model] = estimate_of(value, run.benchmark.metric(name).limits)
    return found


def _axes(
    run: Run,
    utility: Mapping[str, Estimate],
    quality: Mapping[str, float],
    means: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
) -> Axes | None:
    """Return TOFU's plane if forget quality is known, else the benchmark's, else utility against forget probability."""
    if utility and "unlearned" in quality:
        logs = {model: exactly(math.log10(quality[model])) for model in utility if model in quality}
        points = {model: (utility[model], log) for model, log in logs.items()}
        return Axes(*_plane_labels(OWN_SETS), 1, points, math.log10(LEVEL))
    if (benchmark := run.benchmark) is not None and benchmark.plane is not None:
        known = {m: (x, y) for m, (x, y) in _measured_plane(run).items() if x is not None and y is not None}
        points = {m: (_on_plane(benchmark, 0, x), _on_plane(benchmark, 1, y)) for m, (x, y) in known.items()}
        better = {"high": 1, "low": -1}.get(benchmark.metric(benchmark.plane[1]).better or "", 0)
        if points:
            return Axes(*_plane_labels(benchmark), better, points)
    probability = means.get("forget", {}).get("probability", {})
    points = {model: (utility[model], probability[model]) for model in utility if model in probability}
    return Axes(_plane_labels(OWN_SETS)[0], "probability of the forget answers", 0, points) if points else None


def _size(columns: Mapping[str, Values]) -> int:
    return len(next(iter(columns.values()), ()))


def _means(name: str, values: Mapping[str, Columns]) -> dict[str, dict[str, Estimate]]:
    known = {model: sets[name] for model, sets in values.items() if name in sets}
    return {
        metric: {model: mean_estimate(columns[metric]) for model, columns in known.items() if metric in columns}
        for metric in METRICS
    }


def smallest_distance(size: int, other: int) -> float:
    """Return the critical distance of the two-sample Kolmogorov-Smirnov test: larger distances are significant.

    This is the asymptotic critical value at `LEVEL`: c(α) · √((n+m)/(n·m)), for samples of n and m examples.
    """
    from scipy.stats import kstwobign

    return float(kstwobign.isf(LEVEL)) * math.sqrt((size + other) / (size * other))


def _utility_columns(sets: Columns) -> Columns:
    """Return the terms of TOFU's model utility."""
    columns = {
        name: {metric: values[metric] for metric in UTILITY if metric in values}
        for name, values in sets.items()
        if name != "forget"
    }
    return {name: terms for name, terms in columns.items() if terms}


def _utility(columns: Columns) -> float:
    return metrics.model_utility([values.mean() for terms in columns.values() for values in terms.values()])


def _fewest(columns: Columns) -> int:
    """Return the number of examples in the smallest set."""
    return min(len(values) for terms in columns.values() for values in terms.values())


def _kept(
    utility: Mapping[str, Estimate], draws: Mapping[str, Values], columns: Mapping[str, Columns]
) -> Estimate | None:
    if not {"original", "unlearned"} <= utility.keys() or not (draws["original"] > 0).all():
        return None
    value = utility["unlearned"].value / utility["original"].value
    return interval(value, draws["unlearned"] / draws["original"], _fewest(columns["unlearned"]))


def _has_ratios(run: Run, model: str) -> bool:
    return has_truth_ratios(run.task(model, "forget"))


def _difference(run: Run, values: Mapping[str, Columns], other: str) -> Estimate | None:
    """Return the difference in the probability of the forget answers between the unlearned and another model."""
    one, two = (values.get(model, {}).get("forget", {}).get("probability") for model in ("unlearned", other))
    if one is None or two is None:
        return None
    return difference(one, two, paired=run.prompts("unlearned", "forget") == run.prompts(other, "forget"))
