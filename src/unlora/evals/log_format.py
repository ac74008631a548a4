"""The format of TOFU's evaluation logs: {task file: {metric: {index: value}}}, with a value for each example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Columns = Mapping[str, Mapping[str, Any]]  # {metric: {index: value}} of one set
Log = dict[str, dict[str, dict[str, Any]]]

TASKS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
# Rows that no model was trained on, for membership inference. They are scored, but do not count towards model utility.
HOLDOUT = "holdout"
# The key of the file of open-unlearning that a log was made from.
KEPT = "open_unlearning"
# Set that can be evaluated -> its key in a log.
FILES = {**TASKS, HOLDOUT: "eval_log_holdout.json"}
# The sets in a complete evaluation log of each benchmark.
BENCHMARK_SETS = {
    "tofu": ("retain", "real_authors", "world_facts", "forget"),
    "persona": ("retain", "world_facts", "forget"),
}
# Sets that the model was never fine-tuned on. Their probability is normalised over the right and the wrong answers.
GENERAL_SETS = ("real_authors", "world_facts")


def column(columns: Columns, metric: str) -> list[Any]:
    """Return a metric's values in the order of the examples' numbers; empty if the log lacks it."""
    return list(in_order(columns.get(metric, {})).values())


def in_order(column: Mapping[str, Any]) -> dict[str, Any]:
    """Return a column {index: value} in the order of the examples' numbers. Sorted as text, "10" comes before "2"."""
    return {index: column[index] for index in sorted(column, key=int)}


def generated_texts(log: Log, name: str) -> list[tuple[str, str, str]]:
    """Return (prompt, generated answer, right answer) of each example of the set `name`; empty if the log has none."""
    return [(prompt, said, right) for prompt, said, right in column(log.get(TASKS[name], {}), "generated_text")]


def is_number(value: object) -> bool:
    """Return whether a value from a JSON file is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
