"""Several runs side by side: a table, the plane with its Pareto front, and overlays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from unlora.common.files import write_text
from unlora.report import plots, tables
from unlora.report.page import Plot, render
from unlora.report.read import Run
from unlora.report.statistics import Estimate, Measured, Values, exactly
from unlora.report.summary import Axes, Summary, prompts, summarise_run
from unlora.report.verdict import DIFFERENCE, most_telling, strongest, tests_of, verdict

# Of more curves than this in one drawing none can be followed.
MOST_CURVES = 8
# Settings in which runs differ without being other methods.
PLACES = {"output_dir", "original_log", "retrain_log"}


# A number of a run and one of its models.
Number = Callable[[Run, Summary, str], Estimate | float | None]


@dataclass(frozen=True)
class Group:
    """A line of the comparison: one run, or the runs of one method on several seeds."""

    label: str
    runs: Sequence[Run]

    @cached_property
    def summaries(self) -> list[Summary]:
        """The numbers of each run."""
        return [summarise_run(run) for run in self.runs]

    def knows(self, model: str) -> bool:
        """Whether the model was measured beside the runs."""
        return any(model in run.logs or model in run.scores for run in self.runs)

    def estimate(self, number: Number, model: str = "unlearned") -> Estimate | None:
        """Of one run its own interval; of several the mean ± standard error of those that have the number."""
        pairs = zip(self.runs, self.summaries, strict=True)
        found = [value for value in (number(run, summary, model) for run, summary in pairs) if value is not None]
        if not found:
            return None
        if len(self.runs) == 1:
            return found[0] if isinstance(found[0], Estimate) else exactly(found[0])
        values = [value.value if isinstance(value, Estimate) else value for value in found]
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return Estimate(fmean(values), fmean(values) - error, fmean(values) + error)


@dataclass(frozen=True)
class Section:
    """Groups that are comparable: of one benchmark and split."""

    title: str
    groups: Sequence[Group]

    @property
    def references(self) -> dict[str, Group]:
        """For each model that runs are compared with, the first group that knows it."""
        known = {model: [group for group in self.groups if group.knows(model)] for model in ("original", "retrained")}
        return {model: groups[0] for model, groups in known.items() if groups}


@dataclass(frozen=True)
class Column:
    """A number of each run: its name, its key in JSON, and how to find it."""

    name: str
    key: str
    number: Number


def mean_of(name: str, metric: str) -> Number:
    """A mean over the examples of a set."""
    return lambda run, summary, model: summary.mean(name, metric, model)


def score_of(name: str) -> Number:
    """A metric of another benchmark."""
    return lambda run, summary, model: summary.scores.get(name, {}).get(model)


def area_of(run: Run, summary: Summary, model: str) -> Estimate | None:
    """The area of the attack that tells most of the unlearned model."""
    if run.membership is None:
        return None
    area = run.membership.by_model()[model].get(most_telling(run.membership)[0])
    return None if area is None else area.estimate()


def brought_back(run: Run, summary: Summary, model: str) -> Estimate | None:
    """What the attack that succeeds best leaves between the unlearned and the retrained model."""
    attack = strongest(run)
    return None if attack is None or model != "unlearned" else attack.estimate(DIFFERENCE)


def of_unlearned(number: Callable[[Summary], Estimate | None]) -> Number:
    """What says something of the unlearned model alone."""
    return lambda run, summary, model: number(summary) if model == "unlearned" else None


COLUMNS = (
    Column("log₁₀ FQ", "log10_forget_quality", lambda run, summary, model: summary.log_quality(model)),
    Column("Forget P", "forget_probability", mean_of("forget", "probability")),
    Column("Gap", "forget_probability_gap", of_unlearned(lambda summary: summary.gap)),
    Column("Retain P", "retain_probability", mean_of("retain", "probability")),
    Column("Utility", "model_utility", lambda run, s, model: s.utility.get(model) if s.terms else None),
    Column("Kept", "utility_kept", of_unlearned(lambda summary: summary.kept)),
    Column("AUC", "membership_auc", area_of),
    Column("Back", "brought_back", brought_back),
)
# What the names of columns stand for, and how uncertain the numbers are.
EXPLAINED = {
    "log10_forget_quality": "FQ: forget quality.",
    "forget_probability": "P: probability of the right answers.",
    "forget_probability_gap": "Gap: forget P less the retrained model's.",
    "utility_kept": "Kept: utility over the original's.",
    "membership_auc": "AUC: of the membership attack that tells most of the run.",
    "brought_back": "Back: forget P less the retrained model's, under the attack that leaves most.",
}
INTERVALS = "Below each value its 95 % interval over examples, of several runs mean ± one standard error over runs"


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other one beats: better in one coordinate and at least as good in the other."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] >= other[0] and one[1] >= other[1] and one != other

    return [name for name, point in points.items() if not any(beats(other, point) for other in points.values())]


def best(section: Section) -> list[str]:
    """The labels on the Pareto front of utility and forgetting, by their means."""
    axes = axes_of(section)
    better = 1 if axes is None else axes.better
    return front({label: (x.value, better * y.value) for label, (x, y) in _positions(section).items()})


def axes_of(section: Section) -> Axes | None:
    """What the plane is drawn of: the first axes that a group has of which it is known what is better."""
    summaries = (summary for group in section.groups for summary in group.summaries)
    return next((s.axes for s in summaries if s.axes is not None and s.axes.better), None)


def _positions(section: Section) -> dict[str, tuple[Estimate, Estimate]]:
    """Where the groups lie that have both coordinates."""
    axes = axes_of(section)
    places = {group.label: _position(group, axes) for group in section.groups}
    return {label: place for label, place in places.items() if place is not None}


def _position(group: Group, axes: Axes | None, model: str = "unlearned") -> tuple[Estimate, Estimate] | None:
    x, y = (group.estimate(partial(_coordinate, axes=axes, place=place), model) for place in (0, 1))
    return None if x is None or y is None else (x, y)


def _coordinate(run: Run, summary: Summary, model: str, axes: Axes | None, place: int) -> Estimate | None:
    own = summary.axes
    if own is None or axes is None or (own.x, own.y) != (axes.x, axes.y) or model not in own.points:
        return None
    return own.points[model][place]


def columns_of(section: Section) -> list[Column]:
    """The columns in which any group has a number; those of another benchmark come last."""
    names = dict.fromkeys(name for group in section.groups for summary in group.summaries for name in summary.scores)
    own = [Column(name, name, score_of(name)) for name in names]
    return [c for c in (*COLUMNS, *own) if any(group.estimate(c.number) is not None for group in section.groups)]


def comparison(section: Section) -> tables.Table:
    """One line a group, with its verdict or how those of its runs are spread, and one for each model beside them."""
    columns = columns_of(section)

    def row(label: tables.Cell, group: Group, model: str, last: str) -> list[tables.Cell]:
        numbers = [tables.estimate_cell(group.estimate(column.number, model)) for column in columns]
        return [label, *numbers, tables.Cell(last)]

    rows = []
    for group in section.groups:
        method = group.runs[0].method
        note = f"{len(group.runs)} runs" if len(group.runs) > 1 else method if method != group.label else ""
        rows.append(row(tables.Cell(group.label, note), group, "unlearned", verdicts(group)))
    for model, group in section.references.items():
        rows.append(row(tables.Cell(f"{model} model"), group, model, tables.MISSING))
    explained = " ".join(EXPLAINED[column.key] for column in columns if column.key in EXPLAINED)
    return tables.Table(f"{explained} {INTERVALS}".strip(), ["Run", *(c.name for c in columns), "Verdict"], rows)


def verdicts(group: Group) -> str:
    """The verdict of each run, counted."""
    labels = [verdict(run, summary).label for run, summary in zip(group.runs, group.summaries, strict=True)]
    if len(labels) == 1:
        return labels[0]
    return ", ".join(f"{labels.count(label)} × {label.lower()}" for label in dict.fromkeys(labels))


def as_json(section: Section) -> list[dict[str, Any]]:
    """The table as plain values: {"value", "low", "high"} or None for each column."""
    on_front = best(section)
    columns = list(dict.fromkeys([*COLUMNS, *columns_of(section)]))
    return [
        {
            "section": section.title,
            "run": group.label,
            "runs": [str(run.folder) for run in group.runs],
            **{c.key: vars(value) if (value := group.estimate(c.number)) else None for c in columns},
            "verdict": verdicts(group),
            "pareto_front": group.label in on_front,
        }
        for group in section.groups
    ]


def plane(section: Section) -> Plot | None:
    """Utility against forgetting, with the front."""
    axes, found = axes_of(section), _positions(section)
    if axes is None or not found:
        return None
    on_front = best(section)
    labels = [group.label for group in section.groups]
    points = [plots.Point(label, x, y, labels.index(label)) for label, (x, y) in found.items()]
    for model, group in section.references.items():
        if (place := _position(group, axes, model)) is not None:
            points.append(plots.Point(f"{model} model", *place, None))
    line = [(x.value, y.value) for label, (x, y) in found.items() if label in on_front]
    svg = plots.plane(points, axes.x, axes.y, axes.level, front=line)
    words = "; ".join(f"{point.label}: {point.x.value:.3f}, {point.y.value:.3g}" for point in points)
    way = "up" if axes.better > 0 else "down"
    caption = f"Right is more utility, {way} more forgetting. On the Pareto front (dotted): {', '.join(on_front)}."
    return Plot(plots.figure(svg, "Forgetting against utility", words), caption)


def overlay(section: Section) -> Plot | None:
    """The truth ratios of all groups, over their runs, and of the retrained model."""
    ours = {group.label: _pooled(group, "unlearned") for group in section.groups[:MOST_CURVES]}
    ours = {label: values for label, values in ours.items() if len(values)}
    if not ours:
        return None
    retrained = next((known for group in section.groups if len(known := _pooled(group, "retrained"))), None)
    series = {group.label: place for place, group in enumerate(section.groups)}
    svg = plots.distributions(ours, retrained, {**series, "retrained": None})
    words = ", ".join(f"{label} median {float(np.median(values)):.3g}" for label, values in ours.items())
    caption = "Truth ratios of the forget set: the nearer a curve to the retrained model's, the better."
    return Plot(plots.figure(svg, "Distributions of the truth ratio", words), caption + _cut(section))


def _pooled(group: Group, model: str) -> Values:
    found = [summary.ratios[model] for summary in group.summaries if model in summary.ratios]
    return np.concatenate(found) if found else np.array([])


def probabilities(section: Section) -> Plot | None:
    """The probabilities of the answers to forget and to keep."""
    names = {"forget": "answers to forget", "retain": "answers to keep"}
    lines = [(group.label, group, "unlearned") for group in section.groups]
    lines += [(f"{model} model", group, model) for model, group in section.references.items()]
    rows = []
    for line, group, model in lines:
        values = {label: group.estimate(mean_of(name, "probability"), model) for name, label in names.items()}
        rows.append(plots.Row(line, {label: value for label, value in values.items() if value is not None}))
    if not any(row.values for row in rows):
        return None
    svg = plots.dots(rows, {label: place for place, label in enumerate(names.values())}, "probability")
    words = "; ".join(f"{r.label}: " + ", ".join(f"{k} {v.value:.3f}" for k, v in r.values.items()) for r in rows)
    caption = "How likely the right answers are after unlearning, and on the models that runs are compared with."
    return Plot(plots.figure(svg, "Probabilities of the answers", words, wide=True), caption)


def membership(section: Section) -> Plot | None:
    """The area of every membership attack, of all groups and of the retrained model."""
    names = dict.fromkeys(
        name for group in section.groups for run in group.runs if run.membership for name in run.membership.areas
    )

    def area(name: str) -> Number:
        return lambda run, summary, model: (
            None if run.membership is None else _estimated(run.membership.by_model()[model].get(name))
        )

    rows = {name: {group.label: group.estimate(area(name)) for group in section.groups} for name in names}
    for name, values in rows.items():
        known = (group.estimate(area(name), "retrained") for group in section.groups)
        values["retrained model"] = next((value for value in known if value is not None), None)
    title, axis = "Membership attacks", "AUC (0.5: not told apart from unseen rows)"
    caption = "How well each attack tells the forget set from unseen rows."
    return _overlaid(section, rows, title, axis, caption, level=0.5)


def _estimated(area: Measured | None) -> Estimate | None:
    return None if area is None else area.estimate()


def attacks(section: Section) -> Plot | None:
    """What every attack leaves between the unlearned and the retrained model, of all groups."""
    places = dict.fromkeys(place for group in section.groups for run in group.runs for place in _tried(run))

    def left(place: tuple[str, str]) -> Number:
        return lambda run, summary, model: _tried(run).get(place)

    rows = {
        f"{name}: {setting}": {group.label: group.estimate(left((name, setting))) for group in section.groups}
        for name, setting in places
    }
    axis = "forget probability, unlearned − retrained"
    caption = "What each attack leaves above the same attack on the retrained model."
    return _overlaid(section, rows, "Attacks", axis, caption, level=0.0)


def _tried(run: Run) -> dict[tuple[str, str], Estimate | None]:
    found = [] if run.attacks is None else run.attacks.found
    return {(attack.name, attack.setting): attack.estimate(DIFFERENCE) for attack in found}


def _overlaid(
    section: Section,
    values: Mapping[str, Mapping[str, Estimate | None]],
    title: str,
    x: str,
    caption: str,
    level: float,
) -> Plot | None:
    """One line for each attack, one mark for each group."""
    shown = [group.label for group in section.groups[:MOST_CURVES]]
    series: dict[str, int | None] = {label: place for place, label in enumerate(shown)} | {"retrained model": None}
    rows = [
        plots.Row(line, {label: value for label, value in by_group.items() if value is not None and label in series})
        for line, by_group in values.items()
    ]
    rows = [row for row in rows if row.values]
    if not rows:
        return None
    words = "; ".join(f"{r.label}: " + ", ".join(f"{k} {v.value:.3f}" for k, v in r.values.items()) for r in rows)
    return Plot(
        plots.figure(plots.dots(rows, series, x, level, legend=True), title, words, wide=True), caption + _cut(section)
    )


def _cut(section: Section) -> str:
    return f" The first {MOST_CURVES} only." if len(section.groups) > MOST_CURVES else ""


def differing_settings(section: Section) -> tables.Table | None:
    """The settings in which the groups' first runs differ."""
    settings = [dict(tables.flat(group.runs[0].settings)) for group in section.groups]
    names = [name for name in dict.fromkeys(name for part in settings for name in part) if name not in PLACES]
    rows = [
        [tables.Cell(name), *(tables.Cell(part.get(name, "default")) for part in settings)]
        for name in names
        if len({part.get(name) for part in settings}) > 1
    ]
    columns = ["Setting", *(group.label for group in section.groups)]
    return tables.Table("Settings in which the runs differ", columns, rows) if rows else None


def doubts(section: Section) -> list[str]:
    """What keeps the numbers of the groups from being comparable."""
    found = []
    if len({tuple(sorted(_asked(group))) for group in section.groups}) > 1:
        found.append("The runs were not evaluated on the same forget examples: their numbers are not comparable.")
    if len({tuple(_pooled(group, "retrained").round(6)) for group in section.groups}) > 1:
        found.append("The runs were not compared with the same retrained model, or some with none.")
    tests = {group.label: _tests(group) for group in section.groups}
    if len(set(tests.values())) > 1:
        each = "; ".join(f"{label}: {said}" for label, said in tests.items())
        found.append(f"The verdicts do not rest on the same tests, so a better one may only be less tested. {each}.")
    return found


def _tests(group: Group) -> str:
    pairs = zip(group.runs, group.summaries, strict=True)
    return " and ".join(dict.fromkeys(test for pair in pairs for test in tests_of(*pair))) or "none"


def _asked(group: Group) -> list[str]:
    asked = [prompt for run in group.runs for prompt in prompts(run, "unlearned", "forget")]
    measured = [scores for run in group.runs for model, scores in run.scores.items() if model == "unlearned"]
    return asked + [
        f"{scores.benchmark} {name} {size}" for scores in measured for name, size in scores.examples.items()
    ]


def labels_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; the folders differ."""
    parts = [folder.parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(path[-count:]) for path in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def write_comparison(sections: Sequence[Section], path: Path) -> None:
    """Writes the page, whole or not at all."""
    parts = [
        {
            "title": section.title,
            "table": comparison(section),
            "front": best(section),
            "plane": axes_of(section) is not None,
            "plots": [part(section) for part in (plane, overlay, probabilities, membership, attacks)],
            "settings": differing_settings(section),
            "doubts": doubts(section),
        }
        for section in sections
    ]
    write_text(path, render("compare.html.j2", sections=parts))


def markdown(section: Section) -> str:
    """The table as Markdown."""
    table, on_front = comparison(section), best(section)

    def text(cell: tables.Cell) -> str:
        whole = f"{cell.text} ({cell.note})" if cell.note else cell.text
        return " ".join(whole.split()).replace("|", "\\|").replace("<", "&lt;")

    rows = [[text(cell) for cell in row] for row in table.rows]
    for row, group in zip(rows, section.groups, strict=False):  # the last rows are of the models beside them
        row[0] = f"**{row[0]}**" if group.label in on_front else row[0]
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    body = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{body}\n{table.caption}. Bold: on the Pareto front of utility and forgetting.\n"


def print_comparison(section: Section) -> None:
    """The table for the terminal; the verdicts follow it, and names that leave no room for the numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown, on_front, console = comparison(section), best(section), Console()
    headings = shown.columns[1:-1]
    numbers = [
        max(map(len, [*head.split(), *(row[at].text for row in shown.rows)])) for at, head in enumerate(headings, 1)
    ]
    room = console.width - sum(number + 2 for number in numbers) - 1
    names = [row[0].text for row in shown.rows]
    short = names if max(map(len, names)) <= room else [str(place) for place in range(1, len(names) + 1)]
    table = Table(title=escape(section.title) or None, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("Run", no_wrap=True)
    for heading in headings:
        table.add_column("\n".join(heading.split()), no_wrap=True, justify="right")
    for name, row in zip(short, shown.rows, strict=True):
        style = "bold" if row[0].text in on_front else None
        table.add_row(escape(name), *(escape(cell.text) for cell in row[1:-1]), style=style)
    console.print(table)
    for name, row in zip(short, shown.rows, strict=True):
        if name != row[0].text or row[-1].text != tables.MISSING:
            number = "" if name == row[0].text else f"{name} "
            console.print(f"{number}{row[0].text}: {row[-1].text}", markup=False, highlight=False, soft_wrap=True)
    console.print("bold: on the Pareto front of utility and forgetting", highlight=False)
