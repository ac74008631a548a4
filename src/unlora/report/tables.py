"""The tables of a run, with formatted cells. The pages, the model card and the command line render them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlora.report.names import METRICS, MISSING, SETS, capitalised, fixed, p_value
from unlora.report.read import Run
from unlora.report.statistics import Estimate
from unlora.report.summary import Summary
from unlora.runs.folder import DIFFERENCE, MODELS


@dataclass(frozen=True)
class Cell:
    """A value, a smaller note below it, and the strength of the cell's tint (0 to 1)."""

    text: str
    note: str = ""
    tint: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under column headings. The first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def estimate_cell(estimate: Estimate | None) -> Cell:
    """Return the value with its interval below it."""
    if estimate is None:
        return Cell(MISSING)
    return Cell(fixed(estimate.value), estimate.ends(fixed))


def metrics_table(run: Run, summary: Summary) -> Table:
    """Return all means of all models, with model utility and forget quality."""
    rows: list[tuple[Cell, Mapping[str, Cell]]] = []
    for name, metrics in summary.means.items():
        for metric, by_model in metrics.items():
            label = Cell(f"{capitalised(SETS[name])}: {METRICS[metric]}", f"{summary.examples[name]} examples")
            rows.append((label, _estimate_cells(by_model)))
    if summary.terms:
        label = Cell("Model utility", f"harmonic mean of {summary.terms} means")
        rows.append((label, _estimate_cells(summary.utility)))
    if summary.quality:
        cells = {m: Cell(p_value(p), fixed(summary.log_quality(m) or 0.0, 2)) for m, p in summary.quality.items()}
        rows.append((Cell("Forget quality (p)", "log₁₀ p below it"), cells))
    return _model_table("Means over the examples with 95 % intervals", "Metric", run.logs, rows)


def scores_table(run: Run, summary: Summary) -> Table:
    """Return every metric of another benchmark."""
    assert run.benchmark is not None
    models = [model for model in MODELS if model in run.readings]
    rows = [(Cell(run.benchmark.metric(name).label), _estimate_cells(row)) for name, row in summary.scores.items()]
    return _model_table(f"{run.benchmark.title}, with 95 % intervals", "Metric", models, rows)


def membership_table(run: Run) -> Table:
    """Return the AUC of every membership attack."""
    assert run.membership is not None
    models = run.membership.areas

    def cells(name: str) -> dict[str, Cell]:
        known = {model: areas[name] for model, areas in models.items() if name in areas}
        return {model: Cell(fixed(area.value), f"± {fixed(area.standard_error)}") for model, area in known.items()}

    rows = [(Cell(name), cells(name)) for name in run.membership.attacks]
    return _model_table("AUC ± standard error (DeLong)", "Attack", models, rows)


def attacks_table(run: Run) -> Table:
    """Return the probability and the ROUGE-L recall of the forget answers under every attack."""
    assert run.attacks is not None

    def text(values: Mapping[str, float], metric: str) -> str:
        if metric not in values:
            return MISSING
        error = values.get(f"{metric}_se")
        return fixed(values[metric]) + ("" if error is None else f" ± {fixed(error)}")

    def cell(values: Mapping[str, float]) -> Cell:
        return Cell(text(values, "forget_probability"), text(values, "forget_rougeL_recall"))

    rows = [
        (Cell(attack.label), {model: cell(values) for model, values in attack.models.items()})
        for attack in run.attacks.found
        if not attack.counts_facts
    ]
    caption = "Probability of the forget answers (± standard error over draws), with their ROUGE-L recall below it"
    return _model_table(caption, "Attack", (*MODELS, DIFFERENCE), rows)


def revealed_table(run: Run) -> Table | None:
    """Return how many facts sampled answers reveal, or None if no answers were sampled."""
    rows = [
        (Cell(attack.label), {model: revealed_cell(values, model) for model, values in attack.models.items()})
        for attack in (run.attacks.found if run.attacks else ())
        if attack.counts_facts
    ]
    caption = "Facts that this many samples reveal on average, with the 95 % interval of their share below it"
    return _model_table(caption, "Attack", (*MODELS, DIFFERENCE), rows) if rows else None


def revealed_cell(values: Mapping[str, float], model: str) -> Cell:
    """Return the number of facts that a model reveals, with the interval of their share. A difference has a sign."""
    sign = "+" if model == DIFFERENCE else ""
    count = fixed(values["revealed"] * values["facts"], 2, sign).rstrip("0").removesuffix(".")
    low, high = (fixed(values[f"revealed_{end}"], sign=sign) for end in ("low", "high"))
    return Cell(f"{count} of {values['facts']:g}", f"{low} to {high}")


def _estimate_cells(by_model: Mapping[str, Estimate]) -> dict[str, Cell]:
    return {model: estimate_cell(value) for model, value in by_model.items()}


def _model_table(
    caption: str, heading: str, models: Iterable[str], rows: Iterable[tuple[Cell, Mapping[str, Cell]]]
) -> Table:
    """Return a table with one column for each model; a dash stands for what was not measured."""
    models = list(models)
    columns = [capitalised(model.replace("_minus_", " − ")) for model in models]
    body = [[label, *(cells.get(model, Cell(MISSING)) for model in models)] for label, cells in rows]
    return Table(caption, [heading, *columns], body)


def training_table(run: Run) -> Table:
    """Return the trainer's log."""
    rows = [row for row in run.train if "step" in row]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]
    body = [
        [Cell(f"{row['step']:g}"), *(Cell(f"{row[n]:.4g}" if n in row else MISSING) for n in names)] for row in rows
    ]
    return Table("The trainer's log", ["step", *names], body)


def importance_tables(run: Run) -> list[Table]:
    """Return two tables by layer and module: the mean importance of the rows, and how much single rows stand out."""
    means = {name: float(array.mean()) for name, array in run.importance.items()}
    spreads = {name: float(array.std()) / means[name] for name, array in run.importance.items() if means[name] > 0}
    captions = {
        "Mean importance of a layer's rows": means,
        "How much single rows stand out (standard deviation divided by mean)": spreads,
    }
    return [_heat(caption, values) for caption, values in captions.items() if values]


def _heat(caption: str, values: Mapping[str, float]) -> Table:
    by_place = {_place(name): value for name, value in values.items()}
    # Numbers in numeric order, before the names of modules outside any layer.
    layers = sorted({layer for layer, _ in by_place}, key=lambda layer: (not layer.isdecimal(), layer.zfill(9)))
    modules = sorted({module for _, module in by_place})
    low, high = min(values.values()), max(values.values())

    def cell(layer: str, module: str) -> Cell:
        value = by_place.get((layer, module))
        if value is None:
            return Cell(MISSING)
        return Cell(f"{value:.3g}", tint=(value - low) / (high - low) if high > low else 0.0)

    rows = [[Cell(layer), *(cell(layer, module) for module in modules)] for layer in layers]
    return Table(caption, ["layer", *modules], rows)


def _place(name: str) -> tuple[str, str]:
    """Return the layer and module of a parameter name: "3" and "mlp.up_proj" for model.layers.3.mlp.up_proj."""
    match = re.search(r"\.(\d+)\.(.+)", name)
    return (match[1], match[2]) if match else (MISSING, name)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested values into pairs of a dotted name and the value as text."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flat({str(k): v for k, v in value.items()}, f"{name}.")
        else:
            yield name, _shown(value)


def _shown(value: Any) -> str:
    """Format a value: a string as it is, a float with at most six significant digits, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(float(f"{value:.6g}") if isinstance(value, float) else value, ensure_ascii=False, default=str)


def pairs_table(caption: str, values: Mapping[str, Any]) -> Table:
    """Return a table of names and values."""
    return Table(caption, ["Name", "Value"], [[Cell(name), Cell(text)] for name, text in flat(values)])
