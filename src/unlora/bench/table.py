"""The results of a grid: mean and standard error over seeds, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from unlora.bench.cells import CONFIG, RUN, Cell
from unlora.report import Group, Section, read_run

# Column -> where it stands in a model's summary.
COLUMNS = {
    "log10 forget quality": ("log10_forget_quality",),
    "model utility": ("model_utility",),
    "forget probability": ("sets", "forget", "probability"),
    "forget ROUGE-L recall": ("sets", "forget", "rougeL_recall"),
    "retain probability": ("sets", "retain", "probability"),
}
# Columns of which more is better; of the others, nearness to the retrained model would be, which may not be known.
BETTER = ("log10 forget quality", "model utility")


@dataclass(frozen=True)
class Results:
    """One row: a method on a split, or the model before.

    Args:
        method: its name, or "original".
        split: of the benchmark.
        values: {column: a value of each seed that finished}.
        failed: how many seeds failed.
        command: repeats the first seed's run.
    """

    method: str
    split: str
    values: dict[str, list[float]]
    failed: int = 0
    command: str = ""

    def text(self, column: str) -> str:
        """Mean ± standard error, the mean alone of a single seed, or a dash."""
        values = self.values[column]
        if not values:
            return "-"
        error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
        return f"{mean(values):.3f}{error}"


def rows_of(cells: Sequence[Cell]) -> list[Results]:
    """The rows of every split: the original model, then the methods in the order of the grid."""
    rows: list[Results] = []
    for split in dict.fromkeys(cell.split for cell in cells):
        members = [cell for cell in cells if cell.split == split]
        rows.append(Results("original", split, _values(members[:0] + _first_of_each_seed(members), "before")))
        for method in dict.fromkeys(cell.method for cell in members):
            of_method = [cell for cell in members if cell.method == method]
            failed = sum(cell.failure is not None for cell in of_method)
            rows.append(Results(method, split, _values(of_method, "after"), failed, _command(of_method[0])))
    return rows


def sections(cells: Sequence[Cell]) -> list[Section]:
    """What `unlora compare` would show: for each split its methods, each over the seeds that finished."""
    done = [cell for cell in cells if cell.metrics is not None]
    found = []
    for split in dict.fromkeys(cell.split for cell in done):
        members = [cell for cell in done if cell.split == split]
        methods = dict.fromkeys(cell.method for cell in members)
        runs = {m: [read_run(cell.folder / RUN) for cell in members if cell.method == m] for m in methods}
        found.append(Section(split, [Group(method, of_method) for method, of_method in runs.items()]))
    return found


def _first_of_each_seed(cells: Sequence[Cell]) -> list[Cell]:
    """One finished cell a seed: the original model is the same in all of them."""
    found: dict[int, Cell] = {}
    for cell in cells:
        if cell.metrics is not None:
            found.setdefault(cell.seed, cell)
    return list(found.values())


def _values(cells: Sequence[Cell], model: str) -> dict[str, list[float]]:
    summaries = [cell.metrics[model] for cell in cells if cell.metrics and model in cell.metrics]
    found = {column: [_at(summary, path) for summary in summaries] for column, path in COLUMNS.items()}
    return {column: [value for value in values if value is not None] for column, values in found.items()}


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if value is not None else None
    return value


def _command(cell: Cell) -> str:
    return f"unlora unlearn --config {shlex.quote(str(cell.folder / CONFIG))} --output_dir NEW_FOLDER"


def best(rows: Sequence[Results]) -> set[tuple[str, str, str]]:
    """(split, method, column) of the best mean among the methods of each split."""
    found = set()
    for split in {row.split for row in rows}:
        for column in BETTER:
            known = [row for row in rows if row.split == split and row.method != "original" and row.values[column]]
            if known:
                top = max(mean(row.values[column]) for row in known)
                found |= {(split, row.method, column) for row in known if mean(row.values[column]) == top}
    return found


def cells_of(rows: Sequence[Results], bold: str) -> Iterator[list[str]]:
    """The texts of each row, the best ones between two marks."""
    top = best(rows)
    for row in rows:
        seeds = max((len(values) for values in row.values.values()), default=0)
        state = f"{seeds}" + (f", {row.failed} failed" if row.failed else "")
        texts = [row.text(column) for column in COLUMNS]
        marked = [
            f"{bold}{text}{bold}" if (row.split, row.method, column) in top else text
            for column, text in zip(COLUMNS, texts, strict=True)
        ]
        yield [row.split, row.method, state, *marked]


HEADINGS = ("split", "method", "seeds", *COLUMNS)


def markdown(rows: Sequence[Results]) -> str:
    """A Markdown table, and the command behind each row."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *cells_of(rows, "**")]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    commands = "".join(f"{row.command}  # {row.split}, {row.method}\n" for row in rows if row.command)
    return f"{table}\nMean ± standard error over seeds; the best of each split in bold.\n\n```bash\n{commands}```\n"


def to_csv(rows: Sequence[Results]) -> str:
    """One line a row and column, with plain numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "method", "metric", "mean", "standard_error", "seeds", "failed", "command"])
    for row in rows:
        for column, values in row.values.items():
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else ""
            middle = mean(values) if values else ""
            writer.writerow([row.split, row.method, column, middle, error, len(values), row.failed, row.command])
    return text.getvalue()


def print_table(rows: Sequence[Results]) -> None:
    """The table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADINGS)
    for line in cells_of(rows, "\0"):
        table.add_row(*(f"[bold]{text.strip(chr(0))}[/bold]" if text.startswith("\0") else text for text in line))
    Console().print(table)
