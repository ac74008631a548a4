"""Tables of metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from unlora.common.errors import NOT_AVAILABLE
from unlora.evals.log_format import BENCHMARK_SETS
from unlora.report.names import METRICS, OVERALL, metric_rows, number

if TYPE_CHECKING:
    from unlora.benchmarks import Benchmark, Reading
    from unlora.pipeline.forecast import Forecast
    from unlora.report.verdict import Verdict

_WIDTH = 100  # maximum number of characters of a line of text
_SUMMARY_COLUMNS = {**METRICS, "truth_ratio_geometric": "geometric"}
# Number of terms of model utility in TOFU: three for each set except the forget set.
_WHOLE_UTILITY = 3 * (len(BENCHMARK_SETS["tofu"]) - 1)


def print_comparison(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table with one column for each model and one row for each metric. A dash stands for a missing value.

    Args:
        models: {model: metrics from `unlora.evals.summarise`}.
    """
    from rich.table import Table

    from unlora.common.console import PlainConsole

    table = Table("metric", *models)
    terms = {len(summary["utility_terms"]) for summary in models.values()}
    for label, values in metric_rows(models):
        overall = label in OVERALL.values()
        if label == OVERALL["model_utility"] and terms != {_WHOLE_UTILITY}:
            label = f"{label} ({' or '.join(map(str, sorted(terms)))} terms)"
        table.add_row(label, *map(number, values), style="bold" if overall else None)
    PlainConsole().print(table)


def print_reading(reading: Reading, benchmark: Benchmark) -> None:
    """Print a table with one row for each number of a log, with its standard error if it is known."""
    from rich.table import Table

    from unlora.common.console import PlainConsole

    table = Table("number", "value", "standard error")
    rows = {benchmark.metric(name).label: value for name, value in reading.values.items()}
    for label, measured in {**rows, **{f"{name}: auc": area for name, area in reading.areas.items()}}.items():
        if measured is None:
            table.add_row(label, NOT_AVAILABLE, "-")
        else:
            table.add_row(label, number(measured.value), number(measured.standard_error or None))
    console = PlainConsole()
    console.print(table)
    console.print("examples:", ", ".join(f"{name} {count}" for name, count in reading.examples.items()))


def print_sets(summary: Mapping[str, Any], expected: Sequence[str]) -> None:
    """Print the metrics of each set and over all sets of an evaluation in TOFU's schema, and what they lack.

    Args:
        summary: the result of `unlora.evals.summary.summarise`.
        expected: the sets of the benchmark.
    """
    from rich.table import Table

    from unlora.common.console import PlainConsole

    console = PlainConsole()
    table = Table("set", *_SUMMARY_COLUMNS.values())
    retrained = {f"retrained: {name}": values for name, values in summary.get("retrained", {}).items()}
    for name, values in {**summary["sets"], **retrained}.items():
        table.add_row(name, *(number(values[column]) for column in _SUMMARY_COLUMNS))
    console.print(table)
    without, terms = summary["missing_utility_terms"], len(summary["utility_terms"])
    utility = number(summary["model_utility"]) + ("" if terms == _WHOLE_UTILITY else f" (of {terms} terms)")
    lines = {
        "model utility": f"not available without {', '.join(without)}" if without else utility,
        "  geometric": number(summary["model_utility_geometric"]),
        "forget quality": number(summary["forget_quality"]),
        "log10 forget quality": number(summary["log10_forget_quality"]),
    }
    for label, text in lines.items():
        console.print(f"{label:<22}{text}")
    if missing := [name for name in expected if name not in summary["sets"]]:
        console.print(f"not in the log: {', '.join(missing)}")
    if summary["forget_quality"] is None:
        lacking = "forget rows with wrong answers (perturbed_answer)"
        if not retrained:
            lacking = "--retrained, the log, with every example, of a model that never saw these rows"
        console.print(f"forget quality needs {lacking}")


def print_numbers(heading: str, numbers: Mapping[str, float]) -> None:
    """Print a table of names and numbers."""
    from rich.table import Table

    from unlora.common.console import PlainConsole

    table = Table(heading, "value")
    for name, value in numbers.items():
        table.add_row(name, number(value))
    PlainConsole().print(table)


def print_forecast(expected: Forecast) -> None:
    """Print the forecast of a run."""
    from unlora.pipeline.forecast import describe

    for name, text in describe(expected).items():
        print(fill(f"{name}: {text}", _WIDTH, subsequent_indent="  "))


def print_verdict(told: Verdict) -> None:
    """Print the verdict on a run and what to do next. Commands stay on one line, so that they can be copied."""
    print(f"{told.label}\n")
    for part in filter(None, (told.sentence, told.answers, told.cost, told.attacks)):
        print(fill(part, _WIDTH))
    for step in told.steps:
        print(f"\n{fill(step.text, _WIDTH)}\n  {step.command}")


def compression_text(cost: Mapping[str, Any]) -> str:
    """Return a sentence on the cost of a smaller rank. `cost` has the fields of `Compression`."""
    return (
        "exported at rank {rank}: relative error of the weight change {relative_error:.3g}, of a single module "
        "up to {largest_relative_error:.3g}"
    ).format(**cost)
