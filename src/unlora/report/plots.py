"""Plots as inline SVG for light and dark pages: text stays text, lines and series take their colours from CSS.

Matplotlib draws with placeholder colours, which are then replaced by CSS values: `currentColor` for lines and text, and
variables for the series. Series also differ in marker and dash, so that nothing depends on colour alone.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from unlora.evals.metrics import merge_ties
from unlora.report.names import capitalised
from unlora.report.statistics import Estimate, Values
from unlora.report.summary import Axes
from unlora.report.tables import Cell, Table

if TYPE_CHECKING:
    import matplotlib.axes

# Placeholder colours, and the CSS values that replace them.
_INK, _FAINT = "#010203", "#010204"
_SERIES = [f"#0102{16 + place:02x}" for place in range(8)]
_CSS = {_INK: "currentColor", _FAINT: "var(--rule)", **{code: f"var(--s{place})" for place, code in enumerate(_SERIES)}}
_MARKERS, _DASHES = ("o", "s", "D", "^", "v", "P", "X", "*"), ("-", "--", ":", "-.")
# Model -> its number among the series.
MODELS = {"unlearned": 0, "retrained": 1, "original": 2}
# Name of a series -> its number, which decides colour and marker, or None for the one that others are compared with.
Series = Mapping[str, int | None]
_SIZE = (4.4, 2.8)  # inches of 72 CSS units


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, with its caption and a table of its numbers."""

    svg: Markup
    caption: str
    table: Table | None = None


@dataclass(frozen=True)
class Point:
    """A labelled point with intervals. `series` is its number, as in `Series`."""

    label: str
    x: Estimate
    y: Estimate
    series: int | None


@dataclass(frozen=True)
class Row:
    """A row of a dot plot: its label, and {series: estimate}."""

    label: str
    values: Mapping[str, Estimate]


def plane(points: Sequence[Point], axes: Axes, caption: str, front: Sequence[tuple[float, float]] = ()) -> Plot:
    """Draw labelled points with intervals, and a line through a Pareto front."""
    from matplotlib.ticker import MaxNLocator

    def paint(ax: matplotlib.axes.Axes) -> None:
        if front:
            ax.plot(*zip(*sorted(front), strict=True), color=_INK, lw=1, ls=":", zorder=1)
        for point in points:
            tone = _colour(point.series)
            ax.errorbar(
                point.x.value,
                point.y.value,
                xerr=_whiskers([point.x]),
                yerr=_whiskers([point.y]),
                fmt=_marker(point.series),
                color=tone,
                ecolor=tone,
                elinewidth=1,
                ms=6,
                zorder=2,
            )
        ax.margins(0.14)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set(xlabel=axes.x, ylabel=axes.y)
        if axes.level is not None:
            ax.axhline(axes.level, color=_INK, lw=0.8, ls="--", zorder=0)
            left = ax.get_yaxis_transform()
            ax.annotate("p = 0.05", (0, axes.level), (2, -10), left, textcoords="offset points", fontsize=8)
        _label_points(ax, points, axes.level)

    words = "; ".join(f"{point.label}: {point.x.value:.3f}, {point.y.value:.3g}" for point in points)
    return Plot(_draw(paint, "Forgetting against utility", words), caption)


def distributions(
    ratios: Mapping[str, Values], retrained: Values | None, series: Series, caption: str, quantiles: bool = False
) -> Plot:
    """Draw the empirical distributions of truth ratios.

    Args:
        ratios: {name: truth ratios, [examples]}. If there are at most two, the largest distance between the first one
            and the retrained model is marked.
        retrained: truth ratios of the retrained model, [examples], if known.
        series: the numbers of all names and of "retrained".
        caption: caption of the plot.
        quantiles: whether to add a table of the quantiles.
    """
    curves = dict(ratios) if retrained is None else {"retrained": retrained, **ratios}

    def paint(ax: matplotlib.axes.Axes) -> None:
        for name, values in curves.items():
            shares = np.arange(1, len(values) + 1) / len(values)
            dash, tone = _DASHES[(series[name] or 0) % len(_DASHES)], _colour(series[name])
            above_zero = np.maximum(np.sort(values), 1e-12)  # the axis is logarithmic
            ax.step(above_zero, shares, where="post", label=_short(name, 24), color=tone, ls=dash)
        if retrained is not None and len(ratios) <= 2:
            first = next(iter(ratios.values()))
            distance, where = largest_distance(first, retrained)
            ends = sorted(float((values <= where).mean()) for values in (first, retrained))
            ax.plot([max(where, 1e-12)] * 2, ends, color=_INK, lw=1, label=f"largest distance {distance:.2f}")
        ax.set(xscale="log", xlabel="truth ratio R (below 1: prefers the truth)", ylabel="share of examples ≤ R")
        _plain_log_axis(ax)
        ax.axvline(1, color=_FAINT, lw=0.8, zorder=0)
        ax.legend(loc="best", frameon=False, labelcolor="linecolor")

    shown = dict(ratios) if retrained is None else {**ratios, "retrained": retrained}
    words = ", ".join(f"{name} median {np.median(values):.3g}" for name, values in shown.items())
    table = _quantiles(shown) if quantiles else None
    return Plot(_draw(paint, "Distributions of the truth ratio", words), caption, table)


def _quantiles(ratios: Mapping[str, Values]) -> Table:
    rows = [
        [Cell(f"{100 * share:g} %"), *(Cell(f"{np.quantile(values, share):.3g}") for values in ratios.values())]
        for share in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    ]
    return Table("Quantiles of the truth ratios", ["Share", *map(capitalised, ratios)], rows)


def largest_distance(one: Values, other: Values) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov statistic of two samples, and the value where their distributions differ most."""
    from scipy.stats import ks_2samp

    result = ks_2samp(*merge_ties(one, other), method="asymp")  # the p-value is not used, and the exact one takes long
    return float(result.statistic), float(result.statistic_location)


def curve(points: Sequence[tuple[float, float]], label: str, level: float | None = None) -> Plot:
    """Draw one line over the training steps."""
    from matplotlib.ticker import MaxNLocator

    def paint(ax: matplotlib.axes.Axes) -> None:
        ax.plot(*zip(*points, strict=True), color=_colour(0), marker="o" if len(points) <= 40 else "", ms=3.5)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        if level is not None:
            ax.axhline(level, color=_INK, lw=0.8, ls="--", zorder=0)
        ax.set(xlabel="step", ylabel=label)
        ax.margins(y=0.15)

    (first, start), (last, end) = points[0], points[-1]
    title, words = capitalised(label), f"from {start:.3g} at step {first:g} to {end:.3g} at step {last:g}"
    return Plot(_draw(paint, title, words, (_SIZE[0], 1.9)), f"{title}: {words}.")


def dots(
    title: str,
    rows: Iterable[Row],
    series: Series,
    x: str,
    caption: str,
    level: float | None = None,
    table: Table | None = None,
) -> Plot | None:
    """Draw a dot plot: the rows from top to bottom, each with a dot and whiskers for every series.

    Rows and series without a value are left out.

    Returns:
        The plot, or None if there are no values.
    """
    rows = [row for row in rows if row.values.keys() & series.keys()]
    if not rows:
        return None
    from matplotlib.ticker import MaxNLocator

    names = [name for name in series if any(name in row.values for row in rows)]
    between = min(0.22, 0.8 / len(names))

    def paint(ax: matplotlib.axes.Axes) -> None:
        if level is not None:
            ax.axvline(level, color=_INK, lw=0.8, ls="--", zorder=0)
        for place, name in enumerate(names):
            shift = (place - (len(names) - 1) / 2) * between
            chosen = {at + shift: row.values[name] for at, row in enumerate(rows) if name in row.values}
            ax.errorbar(
                [value.value for value in chosen.values()],
                list(chosen),
                xerr=_whiskers(chosen.values()),
                label=_short(name, 24),
                fmt=_marker(series[name]),
                color=_colour(series[name]),
                ms=4.5,
                elinewidth=1,
            )
        ax.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
        ax.tick_params(axis="y", length=0)
        ax.set(xlabel=x, ylim=(len(rows) - 0.5, -0.5))
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.grid(axis="y", lw=0.5)
        ax.set_axisbelow(True)
        style = {"ncols": 4, "frameon": False, "labelcolor": "linecolor", "handletextpad": 0.2}
        ax.figure.legend(loc="outside upper left", **style)

    values = [", ".join(f"{name} {row.values[name].value:.3f}" for name in names if name in row.values) for row in rows]
    words = "; ".join(f"{row.label}: {text}" for row, text in zip(rows, values, strict=True))
    size = (4.8, 0.9 + 0.0616 / between * len(rows))
    return Plot(_draw(paint, title, words, size, wide=True), caption, table)


def _whiskers(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Return the lengths of the whiskers, [[below the values], [above the values]]."""
    pairs = [(max(e.value - e.low, 0), max(e.high - e.value, 0)) for e in estimates]
    return [list(side) for side in zip(*pairs, strict=True)]


def _draw(
    paint: Callable[[matplotlib.axes.Axes], None],
    title: str,
    description: str,
    size: tuple[float, float] = _SIZE,
    wide: bool = False,
) -> Markup:
    """Return what `paint` draws on Matplotlib axes as SVG. Title and description are for screen readers."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
        "axes.unicode_minus": True,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _FAINT),
        "lines.linewidth": 1.6,
    }
    text = io.StringIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the browser draws the text
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_visible(False)
        ax = figure.add_subplot()
        ax.patch.set_visible(False)
        paint(ax)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(text.getvalue(), html.escape(title), html.escape(description), "plot wide" if wide else "plot")


def _inline(svg: str, title: str, description: str, kind: str) -> Markup:
    """Prepare an SVG file for a page: drop what only a separate file needs, and take font and colours from the page."""
    head = (
        f'role="img" aria-label="{title}. {description}" focusable="false">'
        f"<title>{title}</title><desc>{description}</desc>"
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"<svg {found[1]} {head}", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the ids are the same in every plot, and nothing refers to them
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace('<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', "")
    svg = svg.replace("xlink:href", "href")
    svg = re.sub("#0102[0-9a-f]{2}", lambda found: _CSS.get(found[0], found[0]), svg)
    return Markup(f'<div class="{kind}">{svg}</div>')  # Matplotlib has escaped the text in it


def _short(text: str, most: int = 32) -> str:
    """Return the text as one line of printable characters, cut to `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _colour(series: int | None) -> str:
    return _INK if series is None else _SERIES[series % len(_SERIES)]


def _marker(series: int | None) -> str:
    return "x" if series is None else _MARKERS[series % len(_MARKERS)]


def _label_points(ax: matplotlib.axes.Axes, points: Sequence[Point], level: float | None) -> None:
    """Label the points, each at the nearest free place: not over a point, a whisker, the line or an earlier label."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    assert isinstance(ax.figure, Figure)  # for mypy: axes may also belong to a subfigure
    ax.figure.draw_without_rendering()  # the positions of the points depend on the layout
    unit = ax.figure.dpi / 72

    def around(point: Point) -> Bbox:
        """Return the box of a point and its whiskers in pixels."""
        ends = ax.transData.transform([(point.x.low, point.y.low), (point.x.high, point.y.high)])
        return Bbox.union([Bbox(ends), Bbox([middle(point) - 4, middle(point) + 4])])

    def middle(point: Point) -> Values:
        return np.asarray(ax.transData.transform((point.x.value, point.y.value)))

    taken = [around(point) for point in points]
    if level is not None:  # the line, and the text at its left end
        height = float(ax.transData.transform((0, level))[1])
        taken += [Bbox.from_extents(ax.bbox.x0, height - 1, ax.bbox.x1, height + 1)]
        taken += [Bbox.from_extents(ax.bbox.x0, height - 16 * unit, ax.bbox.x0 + 40 * unit, height)]
    for point in sorted(points, key=lambda point: -point.y.value):
        text, (x, y) = _short(point.label, 24), middle(point)
        width, height = 5.2 * len(text) * unit, 11 * unit
        for step in range(60):  # below and above the point, right and left of it, further and further away
            away = (step // 4 * 6 + 9) * (1 if step % 2 else -1)
            side, shift = ("right", -6) if step % 4 > 1 else ("left", 6)
            start = x + shift * unit - (width if side == "right" else 0)
            box = Bbox.from_bounds(start, y + away * unit - height / 2, width, height)
            if ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and not box.count_overlaps(taken):
                break
        taken.append(box)
        place, tone = (point.x.value, point.y.value), _colour(point.series)
        ax.annotate(text, place, (shift, away), textcoords="offset points", ha=side, va="center", color=tone)


def _plain_log_axis(ax: matplotlib.axes.Axes) -> None:
    """Show plain numbers at few ticks: powers of ten, or 1, 2 and 5 if the axis covers less than three decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_xlim()
    subs = (1.0,) if high / low > 1e3 else (1.0, 2.0, 5.0)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
