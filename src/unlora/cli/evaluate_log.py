"""`unlora evaluate-log`: the metrics of an evaluation log, without a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from unlora.cli.output import Answer
from unlora.evals.tofu import BENCHMARK_SETS
from unlora.report.names import number

EXAMPLE = "unlora evaluate-log --benchmark tofu --log unlearned.json --retain-log retrained.json"

COLUMNS = {
    "probability": "probability",
    "rougeL_recall": "ROUGE-L recall",
    "truth_ratio": "truth ratio",
    "truth_ratio_geometric": "geometric",
}


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora evaluate-log", allow_abbrev=False)
    flags.add_argument(
        "--benchmark",
        choices=BENCHMARK_SETS,
        required=True,
        help="says which sets a whole log has: parts left out are named, and without them there is no model utility",
    )
    flags.add_argument("--log", type=Path, required=True, help="the model's log, in the format of TOFU's own logs")
    flags.add_argument(
        "--retain-log", type=Path, help="log of a model trained without the forget set; without it no forget quality"
    )
    return flags


def run(argv: list[str]) -> Answer:
    """Shows the summary.

    Raises:
        InputError: a log that cannot be read, or that cannot give a forget quality when one is asked for.
    """
    args = parser().parse_args(argv)
    from unlora.evals import read_log, summarise

    expected = BENCHMARK_SETS[args.benchmark]
    retain_log = None if args.retain_log is None else read_log(args.retain_log, "retain_log")
    summary = summarise(read_log(args.log), retain_log, expected)
    return Answer(summary, lambda: _print_tables(summary, expected))


def _print_tables(summary: dict[str, Any], expected: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("set", *COLUMNS.values())
    for name, values in summary["sets"].items():
        table.add_row(name, *(number(values[column]) for column in COLUMNS))
    console.print(table)
    utility, without = number(summary["model_utility"]), summary["missing_utility_terms"]
    lines = {
        "model utility": f"not available without {', '.join(without)}" if without else utility,
        "forget quality": number(summary["forget_quality"]),
        "log10 forget quality": number(summary["log10_forget_quality"]),
    }
    for label, text in lines.items():
        console.print(f"{label:<22}{text}", highlight=False)
    missing = [name for name in expected if name not in summary["sets"]]
    if missing:
        console.print(f"not in the log: {', '.join(missing)}", highlight=False)
    if summary["forget_quality"] is None:
        console.print("forget quality needs --retain-log, the log of a model trained without the forget set")
