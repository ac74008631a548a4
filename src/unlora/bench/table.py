"""The results of a grid: means and standard errors over seeds, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from unlora.bench.cells import RUN, Cell
from unlora.bench.logs import Measurement, flags_of
from unlora.benchmarks import Benchmark, Measured
from unlora.common import plugins
from unlora.common.errors import NOT_AVAILABLE
from unlora.evals import read_log
from unlora.report.compare import Group, Section
from unlora.report.read import Run, read_run

# Direction in which a metric is better -> score of a value; a higher score is better.
GOODNESS: Mapping[str, Callable[[float], float]] = {
    "high": lambda value: value,
    "low": lambda value: -value,
    "zero": lambda value: -abs(value),
}
# {column: value}, None if it could not be computed.
Values = Mapping[str, Measured | None]
# (split, seed) -> {"original" or "retrained": log}.
References = Mapping[tuple[str, int], Mapping[str, Path]]
# The reason for a missing column if the benchmark gives none.
NOT_MEASURED = "the evaluation gives no number for it"
# The models that have their own rows, in addition to the methods.
MODELS = ("original", "retrained")


@dataclass(frozen=True)
class Results:
    """One row: a method on a split, or a model that the methods are compared with.

    Args:
        method: name of the method, "original" or "retrained".
        split: split of the benchmark.
        values: {column: values of the seeds that finished}.
        seeds: the seeds that finished, in the order of the values. Seeds that share a model count as the first of them.
        unavailable: {column: reason why it could not be computed}.
        failed: number of seeds that failed.
        command: command that reproduces the row.
        log: the log that the user gave for a row that is not a method of the grid.
        of: {column that counts examples: number of examples}.
    """

    method: str
    split: str
    values: dict[str, list[float]]
    unavailable: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    command: str = ""
    log: Path | None = None
    of: dict[str, int] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    def text(self, column: str) -> str:
        """Return mean ± standard error, only the mean of a single seed, or a dash if nothing was measured."""
        values = self.values.get(column)
        if not values:
            return NOT_AVAILABLE if column in self.unavailable else "-"
        counts = column in self.of
        digits, whole = (1 if counts and len(values) > 1 else 0 if counts else 3), f" of {self.of.get(column)}"
        error = f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{error}{whole if counts else ''}"

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values. A column that could not be computed is {"not available": reason}."""
        reasons = {column: {NOT_AVAILABLE: reason} for column, reason in self.unavailable.items()}
        return {
            "method": self.method,
            "split": self.split,
            "seeds": list(self.seeds),
            "values": self.values | reasons,
            **({"of": self.of} if self.of else {}),
            "failed": self.failed,
            "command": self.command,
        }


def rows_of(
    cells: Sequence[Cell],
    references: References,
    benchmark: Benchmark,
    command: Callable[[str, str], str],
    others: Mapping[str, Mapping[str, Path]] | None = None,
) -> list[Results]:
    """Return the rows of every split: the models to compare with, the methods in the order of the grid, other logs.

    Args:
        cells: the cells of the grid. Only finished cells have values.
        references: logs of the models to compare with.
        benchmark: the benchmark, which reads the logs.
        command: (method, split) -> the command that runs the cells of the row.
        others: {split: {name: log}} of models that were unlearned elsewhere.
    """
    rows: list[Results] = []
    for split in dict.fromkeys(cell.split for cell in cells):
        members = [cell for cell in cells if cell.split == split]
        shared = {cell.seed: references[split, cell.seed] for cell in members}
        for model in MODELS:
            # If several seeds share a log, it is the same model.
            logs: dict[tuple[Path, Path | None], int] = {}
            for seed, found in shared.items():
                if model in found:
                    logs.setdefault((found[model], found.get("retrained")), seed)
            if logs:
                how = " && ".join(dict.fromkeys(_measuring(log, benchmark) for log, _ in logs))
                known = {seed: _values(benchmark, *pair) for pair, seed in logs.items()}
                rows.append(_row(model, split, known, benchmark, how))
        for method in dict.fromkeys(cell.method for cell in members):
            of_method = [cell for cell in members if cell.method == method]
            known = {
                cell.seed: _values(benchmark, cell.log, shared[cell.seed].get("retrained"))
                for cell in of_method
                if cell.finished
            }
            failed = sum(cell.failure is not None for cell in of_method)
            rows.append(_row(method, split, known, benchmark, command(method, split), failed))
        for name, log in (others or {}).get(split, {}).items():
            seed, found = next(iter(shared.items()))
            row = _row(name, split, {seed: _values(benchmark, log, found.get("retrained"))}, benchmark, _given(log))
            rows.append(replace(row, log=log))
    return rows


def _values(benchmark: Benchmark, log: Path, retrained: Path | None) -> Values:
    return benchmark.numbers(log, retrained).values


def _row(
    method: str, split: str, known: Mapping[int, Values], benchmark: Benchmark, command: str, failed: int = 0
) -> Results:
    """Return a row, given the values of each seed."""
    values: dict[str, list[float]] = {}
    of: dict[str, int] = {}
    for column, measured in (pair for of_seed in known.values() for pair in of_seed.items()):
        values.setdefault(column, []).extend([] if measured is None else [measured.value])
        if measured is not None and measured.of is not None:
            of[column] = measured.of
    needs = {column: benchmark.metric(column).needs for column, found in values.items() if not found}
    reasons = {column: reason or NOT_MEASURED for column, reason in needs.items()}
    return Results(method, split, values, reasons, failed, command, of=of, seeds=tuple(known))


def sections(cells: Sequence[Cell], references: References) -> list[Section]:
    """Return one section of a comparison per split: a group of finished runs per method, and the cells that failed."""
    found = []
    for split in dict.fromkeys(cell.split for cell in cells):
        members = [cell for cell in cells if cell.split == split]
        done = [cell for cell in members if cell.finished]
        methods = dict.fromkeys(cell.method for cell in done)
        runs = {m: [_run(cell, references) for cell in done if cell.method == m] for m in methods}
        failed = {str(cell): cell.failure for cell in members if cell.failure is not None}
        found.append(Section(split, [Group(method, of_method) for method, of_method in runs.items()], failed))
    return found


def _run(cell: Cell, references: References) -> Run:
    """Return a finished run with the current log of the retrained model, which may be newer than the run."""
    known = references[cell.split, cell.seed]
    if cell.evaluated_on is not None:
        return read_run(cell.folder / RUN, {**known, "unlearned": cell.log})
    run, retrained = read_run(cell.folder / RUN), known.get("retrained")
    return run if retrained is None else replace(run, logs={**run.logs, "retrained": read_log(retrained, "retrained")})


def _measuring(log: Path, benchmark: Benchmark) -> str:
    """Return the command that wrote a log, or a comment if the user provided the log."""
    flags = flags_of(log)
    if not flags.exists():
        return _given(log)
    command = [*Measurement(benchmark, {}).command, "--config", str(flags), "--log", f"NEW_FOLDER/{log.name}"]
    return shlex.join(["unlora", *command, *plugins.flags()])


def _given(log: Path) -> str:
    return f"# its log was given: {log}"


def columns_of(rows: Sequence[Results]) -> list[str]:
    """Return the names of all columns that any row has."""
    return list(dict.fromkeys(column for row in rows for column in row.values))


def best(rows: Sequence[Results], benchmark: Benchmark) -> set[tuple[str, str, str]]:
    """Return (split, method, column) for the best means among the methods of each split."""
    found = set()
    for split in {row.split for row in rows}:
        for column in columns_of(rows):
            goodness = GOODNESS.get(benchmark.metric(column).better or "")
            known = [row for row in rows if row.split == split and row.method not in MODELS and row.values.get(column)]
            if known and goodness:
                top = max(goodness(mean(row.values[column])) for row in known)
                found |= {(split, row.method, column) for row in known if goodness(mean(row.values[column])) == top}
    return found


def cells_of(rows: Sequence[Results], benchmark: Benchmark, bold: str) -> Iterator[list[str]]:
    """Yield the texts of each row, with the best means enclosed in `bold`."""
    top, columns = best(rows, benchmark), columns_of(rows)
    for row in rows:
        seeds = max((len(values) for values in row.values.values()), default=0)
        state = f"{seeds}" + (f", {row.failed} failed" if row.failed else "")
        marked = [
            f"{bold}{row.text(column)}{bold}" if (row.split, row.method, column) in top else row.text(column)
            for column in columns
        ]
        yield [row.split, row.method, state, *marked]


def headings(rows: Sequence[Results]) -> list[str]:
    """Return the headings of the columns."""
    return ["split", "method", "seeds", *columns_of(rows)]


def markdown(rows: Sequence[Results], benchmark: Benchmark) -> str:
    """Return a Markdown table, followed by the command of each row."""
    first = headings(rows)
    lines = [first, ["---"] * len(first), *cells_of(rows, benchmark, "**")]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    commands = "".join(f"{row.command}  # {row.split}, {row.method}\n" for row in rows if row.command)
    legend = "Mean ± standard error over seeds; the best of each split in bold."
    notes = "".join(f"\n{note}\n" for note in (legend, *missing(rows)))
    return f"{table}{notes}" + (f"\n```bash\n{commands}```\n" if commands else "")


def missing(rows: Sequence[Results]) -> list[str]:
    """Return the reasons for missing columns, each reason once."""
    reasons = {pair: None for row in rows for pair in row.unavailable.items()}
    return [f"{column}: {NOT_AVAILABLE}; {reason}." for column, reason in reasons]


def to_csv(rows: Sequence[Results]) -> str:
    """Return CSV with one line per row and column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = ["split", "method", "metric", "mean", "standard_error", "seeds", "failed", "command", NOT_AVAILABLE]
    writer.writerow(first)
    for row in rows:
        for column, values in row.values.items():
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else ""
            middle = mean(values) if values else ""
            reason = row.unavailable.get(column, "")
            numbers = [middle, error, len(values), row.failed]
            writer.writerow([row.split, row.method, column, *numbers, row.command, reason])
    return text.getvalue()


def print_table(rows: Sequence[Results], benchmark: Benchmark) -> None:
    """Print the table to the terminal."""
    from rich.table import Table
    from rich.text import Text

    from unlora.common.console import PlainConsole

    table = Table(*headings(rows))
    for line in cells_of(rows, benchmark, "\0"):
        line = ["–" if text == NOT_AVAILABLE else text for text in line]  # the reasons follow
        table.add_row(*(Text(text.strip("\0"), "bold") if text.startswith("\0") else text for text in line))
    console = PlainConsole()
    console.print(table)
    for note in missing(rows):
        console.print(note)
