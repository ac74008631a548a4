"""The page that shows several runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from unlora.common.files import write_text
from unlora.report import plots
from unlora.report.compare import Key, Section, best, comparison, doubts
from unlora.report.page import render
from unlora.report.plots import Plot, Row
from unlora.report.statistics import Estimate
from unlora.report.tables import Cell, Table, flat

# With more curves than this in one plot, they cannot be told apart.
_MOST_CURVES = 8
# Settings that are paths: they differ between runs of the same method, too, and are not listed.
_PATHS = {"output_dir", "original_log", "retrained"}
_RETRAINED = "retrained model"


def write_comparison(sections: Sequence[Section], path: Path) -> None:
    """Write the page. If this fails, an earlier page is left as it was."""
    parts = [
        {
            "title": section.title,
            "table": comparison(section),
            "front": best(section),
            "plane": section.axes is not None,
            "plots": [draw(section) for draw in _PLOTS],
            "settings": _differing_settings(section),
            "doubts": doubts(section),
            "failed": section.failed,
        }
        for section in sections
    ]
    write_text(path, render("compare.html.j2", sections=parts))


def _plane(section: Section) -> Plot | None:
    """Draw utility against forgetting, with the Pareto front."""
    axes, places, on_front = section.axes, section.places, best(section)
    if axes is None or not places:
        return None
    numbers = {group.label: number for number, group in enumerate(section.groups)}
    points = [plots.Point(label, *place, numbers[label]) for label, place in places.items()]
    for model, group in section.references.items():
        if (place := group.place(axes, model)) is not None:
            points.append(plots.Point(f"{model} model", *place, None))
    line = [(x.value, y.value) for label, (x, y) in places.items() if label in on_front]
    way = "upwards" if axes.better > 0 else "downwards"
    caption = f"Utility increases to the right, forgetting {way}. On the Pareto front (dotted): {', '.join(on_front)}."
    return plots.plane(points, axes, caption, front=line)


def _overlay(section: Section) -> Plot | None:
    """Draw the distributions of the truth ratios of each group, over all of its runs, and of the retrained model."""
    ours = {group.label: group.ratios("unlearned") for group in section.groups[:_MOST_CURVES]}
    ours = {label: values for label, values in ours.items() if len(values)}
    if not ours:
        return None
    retrained = next((known for group in section.groups if len(known := group.ratios("retrained"))), None)
    series = {group.label: place for place, group in enumerate(section.groups)} | {"retrained": None}
    caption = "Truth ratios of the forget set. The closer a curve is to the retrained model's, the better."
    return plots.distributions(ours, retrained, series, caption + _cut(section))


def _probabilities(section: Section) -> Plot | None:
    """Draw the probabilities of the forget and the retain answers."""
    names = {f"{name} answers": f"{name}_probability" for name in ("forget", "retain")}
    lines = [(group.label, group, "unlearned") for group in section.groups]
    lines += [(f"{model} model", group, model) for model, group in section.references.items()]
    rows = [
        _row(line, {name: group.estimate(key, model) for name, key in names.items()}) for line, group, model in lines
    ]
    caption = "How likely the right answers are after unlearning, and on the models that the runs are compared with."
    series = {name: place for place, name in enumerate(names)}
    return plots.dots("Probabilities of the answers", rows, series, "probability", caption)


def _membership(section: Section) -> Plot | None:
    """Draw the AUC of every membership attack for all groups and the retrained model."""
    rows = []
    for key in _keys(section, "membership"):
        retrained = (group.estimate(key, "retrained") for group in section.groups)
        known = next((value for value in retrained if value is not None), None)
        rows.append(_row(key[1], {**_by_group(section, key), _RETRAINED: known}))
    axis = "AUC (0.5: cannot be distinguished from unseen rows)"
    caption = "How well each attack distinguishes the forget set from unseen rows." + _cut(section)
    return plots.dots("Membership attacks", rows, _series(section), axis, caption, level=0.5)


def _attacks(section: Section) -> Plot | None:
    """Draw the difference between the unlearned and the retrained model under every attack, for all groups."""
    rows = [_row(key[1], _by_group(section, key)) for key in _keys(section, "attack")]
    axis = "forget probability, unlearned − retrained"
    caption = "What each attack brings back, compared with the same attack on the retrained model." + _cut(section)
    return plots.dots("Attacks", rows, _series(section), axis, caption, level=0.0)


_PLOTS: Sequence[Callable[[Section], Plot | None]] = (_plane, _overlay, _probabilities, _membership, _attacks)


def _keys(section: Section, kind: str) -> Iterable[tuple[str, ...]]:
    return dict.fromkeys(key for group in section.groups for key in group.keys(kind))


def _by_group(section: Section, key: Key) -> dict[str, Estimate | None]:
    return {group.label: group.estimate(key) for group in section.groups}


def _series(section: Section) -> dict[str, int | None]:
    labels = [group.label for group in section.groups[:_MOST_CURVES]]
    return {label: place for place, label in enumerate(labels)} | {_RETRAINED: None}


def _row(label: str, values: Mapping[str, Estimate | None]) -> Row:
    return Row(label, {name: value for name, value in values.items() if value is not None})


def _cut(section: Section) -> str:
    """Return the note for a plot that leaves out groups."""
    return f" Only the first {_MOST_CURVES} are shown." if len(section.groups) > _MOST_CURVES else ""


def _differing_settings(section: Section) -> Table | None:
    """Return the settings in which the groups' first runs differ."""
    settings = {group.label: dict(flat(group.runs[0].settings)) for group in section.groups}
    names = [name for name in dict.fromkeys(name for part in settings.values() for name in part) if name not in _PATHS]
    rows = [
        [Cell(name), *(Cell(part.get(name, "default")) for part in settings.values())]
        for name in names
        if len({part.get(name) for part in settings.values()}) > 1
    ]
    return Table("Settings in which the runs differ", ["Setting", *settings], rows) if rows else None
