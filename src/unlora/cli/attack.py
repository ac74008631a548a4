"""`unlora attack`: does the model of a run really forget, or can attacks bring the forget set back?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlora.cli.output import Answer
from unlora.common.errors import NOT_AVAILABLE
from unlora.runs.folder import ATTACKS, DIFFERENCE
from unlora.settings import AttackConfig, LoadedRunConfig

EXAMPLE = "unlora attack run --retrained retrained-model --attacks relearn quantise --seeds 5"
SETTINGS = (LoadedRunConfig, AttackConfig)
_METRICS = {
    "forget_probability": "probability",
    "forget_rougeL_recall": "ROUGE-L recall",
    "retain_probability": "retain probability",
    "revealed": "facts revealed",
}
# The minimum width of a terminal, in characters, for a table with a frame and with standard errors on the same line.
_WIDE = 100


def run(target: LoadedRunConfig, config: AttackConfig) -> Answer:
    """Attack the models of the run, and show a table of the results."""
    from unlora.pipeline.attack import attack

    report = attack(target.run, config, target.trust_remote_code)
    return Answer(report, lambda: print_attacks(report), Path(target.run) / ATTACKS)


def print_attacks(report: Mapping[str, Any]) -> None:
    """Print a table with one row for each attack, setting and metric, and one column for each model.

    Metrics are of the forget set unless their name says otherwise.
    """
    from rich import box
    from rich.table import Column, Table

    from unlora.common.console import PlainConsole

    columns = {"original": "original", "unlearned": "unlearned", "retrained": "retrained", DIFFERENCE: "difference"}
    console = PlainConsole()
    wide = console.width >= _WIDE
    names = ("attack", "metric", *columns.values())
    table = Table(
        *(Column(name, overflow="fold") for name in names),
        box=box.HEAVY_HEAD if wide else box.SIMPLE,
        pad_edge=wide,
        collapse_padding=not wide,
    )
    for attack, settings in report["attacks"].items():
        if NOT_AVAILABLE in settings:
            table.add_row(attack, f"{NOT_AVAILABLE}: {settings[NOT_AVAILABLE]}", end_section=True)
            continue
        for setting, models in settings.items():
            metrics = [name for name in _METRICS if name in models["unlearned"]]
            for metric in metrics:
                label = f"{attack}: {setting}" if metric == metrics[0] else ""
                cells = (_cell(models[column], column, metric, " " if wide else "\n") for column in columns)
                table.add_row(label, _METRICS[metric], *cells, end_section=metric == metrics[-1])
    console.print(table)
    if report["models"]["retrained"] is None:
        console.print(
            f"retrained: {NOT_AVAILABLE}; name a model that was trained without the forget set with --retrained"
        )
    else:
        console.print("difference: unlearned − retrained")
    if NOT_AVAILABLE not in report["attacks"].get("sampling", {NOT_AVAILABLE}):
        console.print("facts revealed: number on average, and the 95 % interval of their share")


def _cell(metrics: Mapping[str, float] | None, model: str, metric: str, between: str) -> str:
    from unlora.report.tables import revealed_cell

    if metrics is None:
        return NOT_AVAILABLE
    if metric == "revealed":
        cell = revealed_cell(metrics, model)
        return f"{cell.text}\n{cell.note.replace(' to ', f'{between}to ')}"
    error = metrics.get(f"{metric}_se")
    return f"{metrics[metric]:.3f}" + ("" if error is None else f"{between}± {error:.3f}")
