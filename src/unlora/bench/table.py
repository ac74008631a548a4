"""The results of a grid: mean and standard error over seeds, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from unlora.bench.cells import RUN, SCORES, Cell
from unlora.bench.interface import Benchmark, Values
from unlora.report import Group, Run, Section, read_run

# How good a value is, by what is wanted of its column.
GOODNESS: Mapping[str, Callable[[float], float]] = {
    "high": lambda value: value,
    "low": lambda value: -value,
    "zero": lambda value: -abs(value),
}
# Rows of models beside those of methods.
MODELS = ("original", "retrained")


@dataclass(frozen=True)
class Results:
    """One row: a method on a split, or one of the models that it is compared with.

    Args:
        method: its name, "original" or "retrained".
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
        values = self.values.get(column)
        if not values:
            return "-"
        error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
        return f"{mean(values):.3f}{error}"


def rows_of(
    cells: Sequence[Cell], references: Mapping[tuple[str, int], Mapping[str, Path]], benchmark: Benchmark
) -> list[Results]:
    """The rows of every split: the models to compare with, then the methods in the order of the grid.

    Args:
        cells: finished, failed or neither.
        references: {(split, seed): {"original" or "retrained": log}}.
        benchmark: how logs are read.
    """
    rows: list[Results] = []
    for split in dict.fromkeys(cell.split for cell in cells):
        members = [cell for cell in cells if cell.split == split]
        shared = [references[split, seed] for seed in dict.fromkeys(cell.seed for cell in members)]
        for model in MODELS:
            # The same log for several seeds is one model.
            logs = dict.fromkeys((logs[model], logs.get("retrained")) for logs in shared if model in logs)
            if logs:
                rows.append(Results(model, split, _values(benchmark.read(*pair) for pair in logs)))
        for method in dict.fromkeys(cell.method for cell in members):
            of_method = [cell for cell in members if cell.method == method]
            known = [
                benchmark.read(cell.log, references[split, cell.seed].get("retrained"))
                for cell in of_method
                if cell.finished
            ]
            failed = sum(cell.failure is not None for cell in of_method)
            rows.append(Results(method, split, _values(known), failed, _command(of_method[0])))
    return rows


def sections(cells: Sequence[Cell], references: Mapping[tuple[str, int], Mapping[str, Path]]) -> list[Section]:
    """What `unlora compare` would show: for each split its methods, each over the seeds that finished."""
    done = [cell for cell in cells if cell.finished]
    found = []
    for split in dict.fromkeys(cell.split for cell in done):
        members = [cell for cell in done if cell.split == split]
        methods = dict.fromkeys(cell.method for cell in members)
        runs = {m: [_run(cell, references) for cell in members if cell.method == m] for m in methods}
        found.append(Section(split, [Group(method, of_method) for method, of_method in runs.items()]))
    return found


def _run(cell: Cell, references: Mapping[tuple[str, int], Mapping[str, Path]]) -> Run:
    scored = None if cell.scoring is None else {**references[cell.split, cell.seed], "unlearned": cell.log}
    return read_run(cell.folder / RUN, scored)


def _values(known: Iterable[Values]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for values in known:
        for column, value in values.items():
            found.setdefault(column, []).extend([] if value is None else [value])
    return found


def _command(cell: Cell) -> str:
    commands = [cell.unlearning("NEW_FOLDER")]
    if cell.scoring is not None:
        commands.append(cell.measuring("NEW_FOLDER", f"NEW_FOLDER/{SCORES}"))
    return " && ".join(f"unlora {shlex.join(command)}" for command in commands)


def columns_of(rows: Sequence[Results]) -> list[str]:
    """The columns of all rows."""
    return list(dict.fromkeys(column for row in rows for column in row.values))


def best(rows: Sequence[Results], wanted: Callable[[str], str | None]) -> set[tuple[str, str, str]]:
    """(split, method, column) of the best mean among the methods of each split."""
    found = set()
    for split in {row.split for row in rows}:
        for column in columns_of(rows):
            goodness = GOODNESS.get(wanted(column) or "")
            known = [row for row in rows if row.split == split and row.method not in MODELS and row.values.get(column)]
            if known and goodness:
                top = max(goodness(mean(row.values[column])) for row in known)
                found |= {(split, row.method, column) for row in known if goodness(mean(row.values[column])) == top}
    return found


def cells_of(rows: Sequence[Results], wanted: Callable[[str], str | None], bold: str) -> Iterator[list[str]]:
    """The texts of each row, the best ones between two marks."""
    top, columns = best(rows, wanted), columns_of(rows)
    for row in rows:
        seeds = max((len(values) for values in row.values.values()), default=0)
        state = f"{seeds}" + (f", {row.failed} failed" if row.failed else "")
        marked = [
            f"{bold}{row.text(column)}{bold}" if (row.split, row.method, column) in top else row.text(column)
            for column in columns
        ]
        yield [row.split, row.method, state, *marked]


def headings(rows: Sequence[Results]) -> list[str]:
    """The first line of a table."""
    return ["split", "method", "seeds", *columns_of(rows)]


def markdown(rows: Sequence[Results], wanted: Callable[[str], str | None]) -> str:
    """A Markdown table, and the command behind each row."""
    first = headings(rows)
    lines = [first, ["---"] * len(first), *cells_of(rows, wanted, "**")]
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


def print_table(rows: Sequence[Results], wanted: Callable[[str], str | None]) -> None:
    """The table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings(rows))
    for line in cells_of(rows, wanted, "\0"):
        table.add_row(*(f"[bold]{text.strip(chr(0))}[/bold]" if text.startswith("\0") else text for text in line))
    Console().print(table)
