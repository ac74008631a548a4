"""Plots as inline SVG: text stays text, ink is `currentColor`, series are CSS variables, for light and dark alike.

Matplotlib draws with colours that stand for CSS values, which are put in afterwards. Series differ in shape and dash
too, so that nothing is told by colour alone.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from unlora.report.statistics import Estimate, Values
from unlora.report.summary import largest_distance

# Stand-ins, and what takes their place.
INK, FAINT = "#010203", "#010204"
SERIES = [f"#0102{16 + place:02x}" for place in range(8)]
CSS = {INK: "currentColor", FAINT: "var(--rule)", **{code: f"var(--s{place})" for place, code in enumerate(SERIES)}}
MARKERS, DASHES = ("o", "s", "D", "^", "v", "P", "X", "*"), ("-", "--", ":", "-.")
# Model -> its place among the series.
MODELS = {"unlearned": 0, "retrained": 1, "original": 2}


@dataclass(frozen=True)
class Point:
    """A point with intervals; `series` is its colour and shape, None of what the others are compared with."""

    label: str
    x: Estimate
    y: Estimate
    series: int | None


@dataclass(frozen=True)
class Row:
    """A line of a dot plot: a label, and by series an estimate."""

    label: str
    values: Mapping[str, Estimate]


@contextmanager
def drawing(name: str, width: float = 4.4, height: float = 3.0) -> Iterator[tuple[Any, list[Markup]]]:
    """Axes to draw on; afterwards the list holds the SVG. Sizes are inches of 72 CSS units."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), FAINT),
        "lines.linewidth": 1.6,
    }
    done: list[Markup] = []
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the browser draws the text
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        yield axes, done
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    done.append(_inline(text.getvalue()))


def _inline(svg: str) -> Markup:
    """The drawing without what only a file of its own needs, with the page's font and colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # repeated in every drawing, and nothing refers to them
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace('<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', "")
    svg = svg.replace("xlink:href", "href")
    return Markup(re.sub("#0102[0-9a-f]{2}", lambda match: CSS[match.group()], svg))  # Matplotlib has escaped all text


def figure(svg: Markup, title: str, description: str, wide: bool = False) -> Markup:
    """The drawing with the name and the description that a screen reader speaks."""
    size = "plot wide" if wide else "plot"
    label = html.escape(f"{title}. {description}", quote=True)
    named = str(svg).replace('aria-hidden="true"', f'role="img" aria-label="{label}"', 1)
    inner = f"><title>{html.escape(title)}</title><desc>{html.escape(description)}</desc>"
    return Markup(f'<div class="{size}">{re.sub(">", lambda _: inner, named, count=1)}</div>')


def plain(text: str, most: int = 32) -> str:
    """One short line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def colour(series: int | None) -> str:
    """The stand-in of a series; ink for what the others are compared with."""
    return INK if series is None else SERIES[series % len(SERIES)]


def shape(series: int | None) -> str:
    """The marker of a series."""
    return "x" if series is None else MARKERS[series % len(MARKERS)]


def plane(
    points: Sequence[Point], x: str, y: str, level: float | None = None, front: Sequence[tuple[float, float]] = ()
) -> Markup:
    """Points with intervals and labels; a dashed line at `level` of y, and a line through a Pareto front."""
    from matplotlib.ticker import MaxNLocator

    with drawing("plane" + x + y) as (axes, done):
        if front:
            axes.plot(*zip(*sorted(front), strict=True), color=INK, lw=1, ls=":", zorder=1)
        for point in points:
            errors = [[[max(e.value - e.low, 0)], [max(e.high - e.value, 0)]] for e in (point.x, point.y)]
            tone, marker = colour(point.series), shape(point.series)
            bars = {"xerr": errors[0], "yerr": errors[1], "elinewidth": 1, "ecolor": tone}
            axes.errorbar(point.x.value, point.y.value, **bars, fmt=marker, color=tone, ms=6, zorder=2)
        axes.margins(0.14)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set(xlabel=x, ylabel=y)
        if level is not None:
            axes.axhline(level, color=INK, lw=0.8, ls="--", zorder=0)
            note = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "fontsize": 8}
            axes.annotate("p = 0.05", (0, level), (2, -10), **note)
        _label_points(axes, points)
    return done[0]


def _label_points(axes: Any, points: Sequence[Point]) -> None:
    """Labels beside the points, each at the first place that no point, whisker or earlier label takes."""
    figure = axes.figure
    figure.draw_without_rendering()  # the layout decides where points lie
    unit = figure.dpi / 72
    taken = [_box(axes, point) for point in points]
    for point in sorted(points, key=lambda point: -point.y.value):
        text, (x, y) = plain(point.label, 24), axes.transData.transform((point.x.value, point.y.value))
        width, height = 5.2 * len(text) * unit, 11 * unit
        low, high = axes.bbox.intervalx
        best = None
        for step in range(60):  # further and further from the point: above and below it, right and left
            away = (step // 4 * 6 + 9) * (1 if step % 2 else -1)
            left = step % 4 > 1
            start = x - (6 * unit + width if left else -6 * unit)
            box = (start, y + away * unit - height / 2, start + width, y + away * unit + height / 2)
            free = low <= start and start + width <= high and not any(_meet(box, other) for other in taken)
            if best is None or free:
                best = (left, away, box)
            if free:
                break
        assert best is not None
        left, away, box = best
        taken.append(box)
        place = {"ha": "right" if left else "left", "va": "center", "color": colour(point.series)}
        offset = (-6 if left else 6, away)
        axes.annotate(text, (point.x.value, point.y.value), offset, textcoords="offset points", **place)


Box = tuple[float, float, float, float]


def _box(axes: Any, point: Point) -> Box:
    """The pixels that a point and its whiskers take: left, bottom, right, top."""
    ends = axes.transData.transform([(point.x.low, point.y.low), (point.x.high, point.y.high)])
    (left, bottom), (right, top) = ends.tolist()
    middle = axes.transData.transform((point.x.value, point.y.value)).tolist()
    return min(left, middle[0] - 4), min(bottom, middle[1] - 4), max(right, middle[0] + 4), max(top, middle[1] + 4)


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def distributions(ratios: Mapping[str, Values], retrained: Values | None, series: Mapping[str, int | None]) -> Markup:
    """Empirical distributions of truth ratios, and the largest distance between the first one and the retrained."""
    curves = dict(ratios) if retrained is None else {"retrained": retrained, **ratios}
    with drawing("distributions") as (axes, done):
        for name, values in curves.items():
            place = series[name]
            shares = np.arange(1, len(values) + 1) / len(values)
            axes.step(
                *([*np.maximum(np.sort(values), 1e-12)], [*shares]),
                where="post",
                color=colour(place),
                ls=DASHES[(place or 0) % len(DASHES)],
                label=plain(name, 24),
            )
        if retrained is not None and len(ratios) <= 2:
            first = next(iter(ratios.values()))
            distance, where = largest_distance(first, retrained)
            ends = sorted(float((values <= where).mean()) for values in (first, retrained))
            axes.plot([max(where, 1e-12)] * 2, ends, color=INK, lw=1, label=f"largest distance {distance:.2f}")
        axes.set(xscale="log", xlabel="truth ratio R (below 1: prefers the truth)", ylabel="share of examples ≤ R")
        _plain_log_axis(axes)
        axes.axvline(1, color=FAINT, lw=0.8, zorder=0)
        axes.legend(loc="lower right", frameon=False, labelcolor="linecolor")
    return done[0]


def _plain_log_axis(axes: Any) -> None:
    """Plain numbers at few ticks: powers of ten, or steps of 1, 2 and 5 where the axis has less than two of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def curve(points: Sequence[tuple[float, float]], x: str, y: str, level: float | None = None) -> Markup:
    """One line over the steps of training."""
    with drawing("curve" + y, height=2.2) as (axes, done):
        axes.plot(*zip(*points, strict=True), color=colour(0), marker="o" if len(points) <= 40 else "", ms=3.5)
        if level is not None:
            axes.axhline(level, color=INK, lw=0.8, ls="--", zorder=0)
        axes.set(xlabel=x, ylabel=y)
        axes.margins(y=0.15)
    return done[0]


def dots(
    rows: Sequence[Row], series: Mapping[str, int | None], x: str, level: float | None = None, legend: bool = False
) -> Markup:
    """One line a row with its label, one dot a series, whiskers for intervals; the first row is at the top.

    A single series has a legend if asked for.
    """
    names = [name for name in series if any(name in row.values for row in rows)]
    between = min(0.22, 0.8 / len(names))
    with drawing("dots" + x, width=4.8, height=0.9 + 0.0616 / between * len(rows)) as (axes, done):
        if level is not None:
            axes.axvline(level, color=INK, lw=0.8, ls="--", zorder=0)
        for name in names:
            place = series[name]
            shift = (names.index(name) - (len(names) - 1) / 2) * between
            chosen = [(at + shift, row.values[name]) for at, row in enumerate(rows) if name in row.values]
            errors = [
                [max(e.value - e.low, 0) for _, e in chosen],
                [max(e.high - e.value, 0) for _, e in chosen],
            ]
            axes.errorbar(
                *([e.value for _, e in chosen], [at for at, _ in chosen]),
                xerr=errors,
                fmt=shape(place),
                color=colour(place),
                ms=4.5,
                elinewidth=1,
                label=plain(name, 24),
            )
        axes.set_yticks(range(len(rows)), [plain(row.label) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=x, ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", lw=0.5)
        axes.set_axisbelow(True)
        if legend or len(names) > 1:
            style: Any = {"ncols": 4, "frameon": False, "labelcolor": "linecolor", "handletextpad": 0.2}
            axes.figure.legend(loc="outside upper left", **style)
    return done[0]
