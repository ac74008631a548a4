"""Tables of metrics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.evals.tofu import BENCHMARK_SETS
from unlora.report.names import METRICS, SETS, number

# Terms of model utility in TOFU: three of each set but forget.
WHOLE_UTILITY = 3 * (len(BENCHMARK_SETS["tofu"]) - 1)


def print_comparison(models: Mapping[str, Mapping[str, Any]]) -> None:
    """One column a model, one row a metric; what was not measured is a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", *(f"{name}" for name in models))
    for key, label in SETS.items():
        if any(key in summary["sets"] for summary in models.values()):
            for column, metric in METRICS.items():
                values = [summary["sets"].get(key, {}).get(column) for summary in models.values()]
                table.add_row(f"{label}: {metric}", *(number(value) for value in values))
    terms = {len(summary["utility_terms"]) for summary in models.values()}
    fewer = "" if terms == {WHOLE_UTILITY} else f" ({' or '.join(map(str, sorted(terms)))} terms)"
    for column in ("model_utility", "forget_quality", "log10_forget_quality"):
        label = column.replace("_", " ") + (fewer if column == "model_utility" else "")
        table.add_row(label, *(number(summary[column]) for summary in models.values()), style="bold")
    Console().print(table)


def print_tasks(result: Mapping[str, Any]) -> None:
    """One row a task and metric, as `unlora.evals.harness.evaluate_tasks` returns them."""
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
    """What fewer ranks cost, as `Compression` has it."""
    return (
        "exported at rank {rank}: relative error of the weight change {relative_error:.3g}, of a single module "
        "up to {largest_relative_error:.3g}"
    ).format(**cost)
