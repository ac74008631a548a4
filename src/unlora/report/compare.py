"""Several runs side by side: their numbers in one table, the Pareto front, and why they may not be comparable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from unlora.evals import summarise
from unlora.report.answers import Count
from unlora.report.names import COUNTS, MISSING
from unlora.report.read import Run
from unlora.report.statistics import Estimate, Values, estimate_of, exactly
from unlora.report.summary import Axes, Summary, summarise_run
from unlora.report.tables import Cell, Table, estimate_cell
from unlora.report.unseen import most_telling
from unlora.report.verdict import strongest, tests_of, verdict
from unlora.runs.folder import DIFFERENCE

# Columns of the table: key -> the heading, and an explanation of it, if it needs one.
COLUMNS = {
    "log10_forget_quality": ("log₁₀ FQ", "FQ: forget quality."),
    "forget_probability": ("Forget P", "P: probability of the right answers."),
    "given_away": ("Revealed", "Revealed: answers to the forget questions that still reveal the fact."),
    "broken": ("Broken", "Broken: answers to the forget questions that are broken text."),
    "forget_probability_gap": ("Gap", "Gap: forget P minus the retrained model's."),
    "retain_probability": ("Retain P", ""),
    "model_utility": ("Utility", ""),
    "model_utility_geometric": (
        "Utility, geometric",
        "Geometric: with the geometric truth ratio, as in papers.",
    ),
    "utility_kept": ("Kept", "Kept: utility divided by the original model's, at most 1."),
    "membership_auc": ("AUC", "AUC: of the membership attack that is the most telling for the run."),
    "brought_back": ("Back", "Back: forget P minus the retrained model's, under the strongest attack."),
}
_INTERVALS = (
    "Below each value is its 95 % interval over examples; several runs have mean ± one standard error over runs."
)
# Metrics of logs that hold aggregated values only -> the columns for the same numbers.
_COLUMN_OF = {
    "log10 forget quality": "log10_forget_quality",
    "forget probability": "forget_probability",
    "retain probability": "retain_probability",
    "model utility, geometric": "model_utility_geometric",
}
# The name of a number: a column, a metric of a benchmark, or a tuple of the kind of number and its name.
Key = str | tuple[str, ...]


def _numbers_of(run: Run, summary: Summary, model: str) -> Iterator[tuple[Key, Estimate | None]]:
    """Yield the key and the value of every number of one model that is compared between runs."""
    for name, by_model in summary.scores.items():
        yield _COLUMN_OF.get(name, name), by_model.get(model)
    quality = summary.log_quality(model)
    yield "log10_forget_quality", None if quality is None else exactly(quality)
    for name in ("forget", "retain"):
        yield f"{name}_probability", summary.mean(name, "probability", model)
    for kind in COUNTS:
        count = summary.count(kind, "forget", model)
        yield kind, None if count is None else count.estimate()
    yield "model_utility", summary.utility.get(model) if summary.terms else None
    geometric = summarise(run.logs[model])["model_utility_geometric"] if model in run.logs else None
    if geometric is not None:
        yield "model_utility_geometric", exactly(geometric)
    if run.membership is not None:
        areas = {name: estimate_of(area, (0, 1)) for name, area in run.membership.areas[model].items()}
        yield from ((("membership", name), area) for name, area in areas.items())
        yield "membership_auc", areas.get(most_telling(run.membership)[0])
    if summary.axes is not None and model in summary.axes.points:
        x, y = summary.axes.points[model]
        yield ("x", summary.axes.x, summary.axes.y), x
        yield ("y", summary.axes.x, summary.axes.y), y
    if model == "unlearned":
        yield "forget_probability_gap", summary.gap
        yield "utility_kept", summary.share_kept
        worst = strongest(run)
        yield "brought_back", None if worst is None else worst.estimate(DIFFERENCE)
        for attack in run.attacks.found if run.attacks is not None else ():
            yield ("attack", attack.label), attack.estimate(DIFFERENCE)


@dataclass(frozen=True)
class Group:
    """A row of the comparison: one run, or the runs of one method with several seeds."""

    label: str
    runs: Sequence[Run]

    @cached_property
    def summaries(self) -> list[Summary]:
        """The numbers of each run."""
        return [summarise_run(run) for run in self.runs]

    @cached_property
    def _numbers(self) -> dict[tuple[str, Key], list[Estimate]]:
        """{(model, key): the numbers of the runs that have it}."""
        found: dict[tuple[str, Key], list[Estimate]] = {}
        for run, summary in zip(self.runs, self.summaries, strict=True):
            for model in ("original", "unlearned", "retrained"):
                for key, value in _numbers_of(run, summary, model):
                    if value is not None:
                        found.setdefault((model, key), []).append(value)
        return found

    def knows(self, model: str) -> bool:
        """Return whether the model was evaluated along with any of the runs."""
        return any(model in run.logs or model in run.readings for run in self.runs)

    def keys(self, kind: str) -> list[tuple[str, ...]]:
        """Return the keys of this kind that the unlearned models have, in the order of the runs."""
        keys = (key for model, key in self._numbers if model == "unlearned")
        return [key for key in keys if isinstance(key, tuple) and key[0] == kind]

    def estimate(self, key: Key, model: str = "unlearned") -> Estimate | None:
        """Return a number, or None if it is not known.

        A single run gives the number with its own interval, several runs give their mean ± one standard error.
        """
        found = self._numbers.get((model, key))
        if not found or len(self.runs) == 1:
            return found[0] if found else None
        values = [value.value for value in found]
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return Estimate(fmean(values), fmean(values) - error, fmean(values) + error)

    def count(self, kind: str, model: str = "unlearned") -> Count | None:
        """Return a count of answers, summed over all runs, or None if it is not known."""
        found = [count for s in self.summaries if (count := s.count(kind, "forget", model)) is not None]
        return sum(found[1:], found[0]) if found else None

    def ratios(self, model: str) -> Values:
        """Return the concatenated truth ratios of all runs, [examples]."""
        found = [summary.ratios[model] for summary in self.summaries if model in summary.ratios]
        return np.concatenate(found) if found else np.array([])

    def place(self, axes: Axes | None, model: str = "unlearned") -> tuple[Estimate, Estimate] | None:
        """Return the coordinates of the group in a plane, or None if one of them is not known."""
        if axes is None:
            return None
        x, y = (self.estimate((side, axes.x, axes.y), model) for side in "xy")
        return None if x is None or y is None else (x, y)

    def verdicts(self) -> str:
        """Return the verdict of a single run, or how often each verdict occurs among several runs."""
        labels = [verdict(run, summary).label for run, summary in zip(self.runs, self.summaries, strict=True)]
        if len(labels) == 1:
            return labels[0]
        return ", ".join(f"{labels.count(label)} × {label.lower()}" for label in dict.fromkeys(labels))

    def tests(self) -> str:
        """Return the names of the tests that the verdicts are based on."""
        pairs = zip(self.runs, self.summaries, strict=True)
        return " and ".join(dict.fromkeys(test for pair in pairs for test in tests_of(*pair))) or "none"

    def examples(self) -> list[str]:
        """Return texts that identify the examples on which the runs were evaluated."""
        asked = [prompt for run in self.runs for prompt in run.prompts("unlearned", "forget")]
        for run in self.runs:
            if run.benchmark is not None and "unlearned" in run.readings:
                examples = run.readings["unlearned"].examples
                asked += [f"{run.benchmark.title} {name} {size}" for name, size in examples.items()]
        return asked


@dataclass(frozen=True)
class Section:
    """Groups that are comparable because they are of the same benchmark and split.

    Args:
        title: what they have in common.
        groups: the rows of the comparison.
        failed: {name of a run that failed: reason}.
    """

    title: str
    groups: Sequence[Group]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> dict[str, Group]:
        """{"original" or "retrained": the first group that was evaluated along with this model}."""
        known = {model: [group for group in self.groups if group.knows(model)] for model in ("original", "retrained")}
        return {model: groups[0] for model, groups in known.items() if groups}

    @property
    def axes(self) -> Axes | None:
        """The plane that is drawn: the first one in which it is known which direction is better."""
        summaries = (summary for group in self.groups for summary in group.summaries)
        return next((s.axes for s in summaries if s.axes is not None and s.axes.better), None)

    @property
    def places(self) -> dict[str, tuple[Estimate, Estimate]]:
        """{label: coordinates of the group in the plane}, for the groups whose coordinates are known."""
        places = {group.label: group.place(self.axes) for group in self.groups}
        return {label: place for label, place in places.items() if place is not None}

    @property
    def columns(self) -> dict[str, str]:
        """{key: heading} of the columns in which any group has a number. A benchmark's own metrics come last."""
        own = dict.fromkeys(name for group in self.groups for s in group.summaries for name in s.scores)
        own = {name: None for name in own if name not in _COLUMN_OF}
        headings = {key: heading for key, (heading, _) in COLUMNS.items()} | {name: name for name in own}
        known = {key for key in headings if any(group.estimate(key) is not None for group in self.groups)}
        if all(run.settings for group in self.groups for run in group.runs):  # this column is for logs of other tools
            known.discard("model_utility_geometric")
        return {key: heading for key, heading in headings.items() if key in known}


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points on the Pareto front.

    One point beats another if it is at least as good in both coordinates and better in one of them.
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] >= other[0] and one[1] >= other[1] and one != other

    return [name for name, point in points.items() if not any(beats(other, point) for other in points.values())]


def best(section: Section) -> list[str]:
    """Return the labels on the Pareto front of utility and forgetting, by their means.

    A utility above the original model's counts as the original's, because unlearning does not add abilities.
    """
    better = 1 if section.axes is None else section.axes.better
    original = section.references.get("original")
    most = None if original is None else original.place(section.axes, "original")
    limit = math.inf if most is None else most[0].value
    return front({label: (min(x.value, limit), better * y.value) for label, (x, y) in section.places.items()})


def comparison(section: Section) -> Table:
    """Return a table with a row for each group, and for each model that the groups are compared with."""
    columns = section.columns

    def cell(group: Group, key: str, model: str) -> Cell:
        count = group.count(key, model) if key in COUNTS else None
        return estimate_cell(group.estimate(key, model)) if count is None else Cell(str(count))

    def row(label: Cell, group: Group, model: str, last: str) -> list[Cell]:
        return [label, *(cell(group, key, model) for key in columns), Cell(last)]

    rows = []
    for group in section.groups:
        method = group.runs[0].method
        note = f"{len(group.runs)} runs" if len(group.runs) > 1 else method if method not in group.label else ""
        rows.append(row(Cell(group.label, note), group, "unlearned", group.verdicts()))
    for model, group in section.references.items():
        rows.append(row(Cell(f"{model} model"), group, model, MISSING))
    explained = [text for key, (_, text) in COLUMNS.items() if key in columns and text]
    return Table(" ".join([*explained, _INTERVALS]), ["Run", *columns.values(), "Verdict"], rows)


def _plain(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def as_json(section: Section) -> list[dict[str, Any]]:
    """Return the table as plain values: {"value", "low", "high"} or None for each column."""
    on_front = best(section)
    return [
        {
            "section": section.title,
            "run": group.label,
            "runs": [str(run.folder) for run in group.runs],
            **{k: _plain(group.estimate(k)) for k in [*COLUMNS, *section.columns]},
            "verdict": group.verdicts(),
            "pareto_front": group.label in on_front,
        }
        for group in section.groups
    ]


def doubts(section: Section) -> list[str]:
    """Return the reasons why the numbers of the groups may not be comparable."""
    found = []
    if len({tuple(sorted(group.examples())) for group in section.groups}) > 1:
        found.append("The runs were not evaluated on the same examples, so their numbers are not comparable.")
    # The same model on another machine gives ratios that differ in their last digits.
    if len({tuple(group.ratios("retrained").round(6)) for group in section.groups}) > 1:
        found.append("The runs were not all compared with the same retrained model.")
    tests = {group.label: group.tests() for group in section.groups}
    if len(set(tests.values())) > 1:
        each = "; ".join(f"{label}: {names}" for label, names in tests.items())
        found.append(f"The verdicts rest on different tests. A better verdict may only mean fewer tests. {each}.")
    return found


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Return short labels for different folders: the shortest distinct ends of their paths, without shared names.

    For example, a/seed-0/run and b/seed-0/run become "a" and "b".
    """
    parts = [folder.parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        ends = [path[-count:][::-1] for path in parts]  # the last name first
        if len(set(ends)) == len(ends):
            break
    differ = [len(set(names)) > 1 for names in zip_longest(*ends)]
    kept = [[name for name, own in zip(end, differ, strict=False) if own] for end in ends]
    return ["/".join(reversed(names)) or end[0] for names, end in zip(kept, ends, strict=True)]
