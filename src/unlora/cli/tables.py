"""Tables of metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.evals.tofu import BENCHMARK_SETS
from unlora.report.names import OVERALL, metric_rows, number

# Terms of model utility in TOFU: three of each set but forget.
WHOLE_UTILITY = 3 * (len(BENCHMARK_SETS["tofu"]) - 1)


def print_comparison(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one column for each model and one row for each metric; a dash stands for what was not measured.

    Args:
        models: by model the metrics that `unlora.evals.summarise` returns.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", *models)
    terms = {len(summary["utility_terms"]) for summary in models.values()}
    for label, values in metric_rows(models):
        overall = label in OVERALL.values()
        if label == OVERALL["model_utility"] and terms != {WHOLE_UTILITY}:
            label = f"{label} ({' or '.join(map(str, sorted(terms)))} terms)"
        table.add_row(label, *map(number, values), style="bold" if overall else None)
    Console().print(table)


def print_tasks(result: Mapping[str, Any]) -> None:
    """Print one row for each task and metric that `unlora.evals.harness.evaluate_tasks` returned."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "questions", "metric", "value", "standard error")
    for task, row in result["tasks"].items():
        for metric in row:
            if metric not in ("n", "version") and "_stderr" not in metric:
                error = row.get(f"{metric}_stderr")
                table.add_row(task, str(row["n"]), metric, number(row[metric]), number(error))
    Console().print(table)


def compression_text(cost: Mapping[str, Any]) -> str:
    """Return a sentence on what fewer ranks cost; `cost` has the fields of `Compression`."""
    return (
        "exported at rank {rank}: relative error of the weight change {relative_error:.3g}, of a single module "
        "up to {largest_relative_error:.3g}"
    ).format(**cost)
