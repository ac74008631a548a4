"""The ranking of a grid's methods, and the files that open-unlearning's `community/` folder requires."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from unlora.bench.cells import Cell
from unlora.bench.table import MODELS, NOT_MEASURED, References, Results
from unlora.benchmarks import Benchmark
from unlora.common.files import write_text
from unlora.common.version import __version__
from unlora.evals.logs import write_log
from unlora.evals.ranking import RANKED
from unlora.settings.evaluation import EVAL
from unlora.settings.names import Method

_Logs = tuple[Path, Path | None, Path | None]


def ranked(
    cells: Sequence[Cell], references: References, benchmark: Benchmark, rows: Sequence[Results]
) -> list[Results]:
    """Return a row for each model and method with the numbers of its ranking, with the best method of a split first.

    Args:
        cells: the cells of the grid.
        references: logs of the models to compare with.
        benchmark: the benchmark, which reads the logs.
        rows: the table of results. Methods that cannot be ranked keep its order.
    """
    found = []
    for row in rows:
        known = [benchmark.ranking(*logs) for logs in _logs_of(row, cells, references)]
        if not any(known):
            continue
        values = {name: [v for part in known if (v := part[name]) is not None] for name in RANKED}
        reasons = {name: benchmark.metric(name).needs or NOT_MEASURED for name in RANKED if not values[name]}
        found.append(Results(row.method, row.split, values, reasons, row.failed, seeds=row.seeds))
    splits = list(dict.fromkeys(row.split for row in rows))

    def place(row: Results) -> tuple[int, bool, float]:
        overall = row.values["overall"]
        return splits.index(row.split), row.method not in MODELS, -mean(overall) if overall else 1.0

    return sorted(found, key=place)


def _logs_of(row: Results, cells: Sequence[Cell], references: References) -> list[_Logs]:
    """Return the logs (own, original, retrained) of each seed of a row."""
    members = [cell for cell in cells if cell.split == row.split]
    if row.log is not None:
        shared = references[row.split, members[0].seed]
        return [(row.log, shared.get("original"), shared.get("retrained"))]
    found: dict[_Logs, None] = {}
    for cell in members:
        shared = references[row.split, cell.seed]
        others = shared.get("original"), shared.get("retrained")
        if row.method in MODELS:
            if row.method in shared:
                found[(shared[row.method], *others)] = None
        elif cell.method == row.method and cell.finished:
            found[(cell.log, *others)] = None
    return list(found)


def write_community(
    folder: Path, cells: Sequence[Cell], references: References, benchmark: Benchmark, rows: Sequence[Results]
) -> None:
    """Write the files of a contribution to open-unlearning's leaderboard: README, run.sh and evals of each method.

    Args:
        folder: the folder in which `community/` is created.
        cells: the cells of the grid.
        references: logs of the models to compare with.
        benchmark: the benchmark, which reads the logs.
        rows: the table of results.
    """
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [row for row in rows if row.method == method]
        place = folder / "community" / "methods" / re.sub("[+@]", "-", method)
        commands = "".join(f"# {row.split}\n{row.command}\n" for row in own)
        write_text(place / "run.sh", f"#!/bin/sh\n# pip install unlora=={__version__}\nset -e\n{commands}")
        write_text(place / "README.md", _readme(method, own))
        for cell in cells:
            if cell.method == method and cell.finished:
                name = place / "evals" / cell.split / f"seed-{cell.seed}" / f"TOFU{EVAL}"
                write_log(benchmark.read_log(cell.log), name)
    for (split, seed), logs in references.items():
        for model, log in logs.items():
            name = folder / "community" / "evals" / f"{model}-{split}-seed-{seed}" / f"TOFU{EVAL}"
            write_log(benchmark.read_log(log), name)
    write_text(folder / "community" / "leaderboard.md", _leaderboard(rows))


def _readme(method: str, rows: Sequence[Results]) -> str:
    init, loss, _ = Method.of(method)
    results = "".join(f"| {row.split} | {' | '.join(_published(row))} |\n" for row in rows)
    return f"""# {method}

LoRA unlearning with [unlora](https://pypi.org/project/unlora): the adapter is initialised with `{init}` and trained
with the loss `{loss}`. The documentation lists the papers of both under "Methods".

# Setup

- [ ] **Hyperparameters & Search Space:** the settings are in `run.sh`. Say which of them you searched, over what range.
- [ ] **Computational Setup:** name the type and the number of GPUs.
- [ ] **Other Details:** the adapter has rank 8 unless `run.sh` says otherwise; the base weights are not changed.

# Results

`run.sh` reproduces them. `evals/` has `TOFU_EVAL.json` and `TOFU_SUMMARY.json` of each seed.

| split | forget_quality | model_utility |
| --- | --- | --- |
{results}
# Citation

Cite the papers of the initialiser and of the loss, and OpenUnlearning (arXiv 2506.12618).
"""


def _leaderboard(rows: Sequence[Results]) -> str:
    """Return the rows for their leaderboard: forget quality as a p-value, and the geometric model utility."""
    names = {"original": "Finetuned", "retrained": "Retain"}
    lines = [f"| {row.split} | {names.get(row.method, row.method)} | {' | '.join(_published(row))} |" for row in rows]
    return "\n".join(["| split | Method | forget_quality | model_utility |", "| --- | --- | --- | --- |", *lines, ""])


def _published(row: Results) -> list[str]:
    quality, utility = row.values.get("log10 forget quality"), row.values.get("model utility, geometric")
    return [f"{10 ** mean(quality):.2e}" if quality else "-", f"{mean(utility):.2f}" if utility else "-"]
