"""`unlora membership`: measure memorisation, and how well the forget set can be distinguished from unseen data.

This is not a benchmark of `unlora evaluate`, because it accepts rows of any kind and needs no other sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.cli.output import Answer
from unlora.report.names import number
from unlora.runs.folder import MEMBERSHIP
from unlora.settings import MembershipConfig, ModelConfig, TextConfig

EXAMPLE = "unlora membership --on run --forget_data forget.jsonl --holdout_data unseen.jsonl"
FIRST = {
    "the model": ("model_name_or_path", "adapter", "on"),
    "forgotten and unseen rows": ("forget_data", "holdout_data", "prompt_format", "ds_size"),
    "the result": ("log", "retrained", "reference_model"),
}
SETTINGS = (ModelConfig, TextConfig, MembershipConfig)


def run(model: ModelConfig, text: TextConfig, config: MembershipConfig) -> Answer:
    """Score both sets, write metrics and scores, and show the metrics."""
    from unlora.pipeline.membership import measure_membership

    config.log_in_run(model, MEMBERSHIP)
    metrics = measure_membership(model, text, config)
    return Answer(metrics, lambda: _print_tables(metrics), config.log)


def _print_tables(metrics: Mapping[str, Any]) -> None:
    """Print the memorisation of each set, and the results of each attack. A dash stands for a missing value."""
    from rich.table import Table

    from unlora.common.console import PlainConsole

    sets = metrics["examples"]
    memorisation = Table("memorisation", *(f"{name} ({size})" for name, size in sets.items()))
    for name, values in metrics["memorisation"].items():
        memorisation.add_row(name.replace("_", " "), *(number(values[part]) for part in sets))
    membership = Table("membership attack", "AUC", "standard error", "PrivLeak")
    for name, values in metrics["membership"].items():
        membership.add_row(name, *(number(values[column]) for column in ("auc", "standard_error", "privleak")))
    console = PlainConsole()
    console.print(memorisation)
    console.print(membership)
