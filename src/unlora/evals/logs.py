"""Evaluation logs on disk, in the format of TOFU's published logs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.common.files import write_text
from unlora.common.reading import read_json
from unlora.evals.tofu import TASKS, Log

_LEAST_LOSS = -1e-6  # rounding may make a loss of 0 slightly negative
# Metric -> the least and the largest value that it may have.
_RANGES = {
    "avg_gt_loss": (_LEAST_LOSS, math.inf),
    "rougeL_recall": (0.0, 1.0),
    "avg_paraphrased_loss": (_LEAST_LOSS, math.inf),
}


def write_log(log: Log, path: str | Path) -> None:
    """Write a log, replacing a file of that name. The file appears whole or not at all."""
    write_text(path, json.dumps(log, allow_nan=False))


def read_log(path: str | Path, argument: str = "log") -> Log:
    """Read a log. `argument` is the name under which the user gave the path, for error messages.

    Raises:
        InputError: no such file, not JSON, not {task file: {metric: {index: value}}}, a loss below 0, a recall outside
            [0, 1], or examples of one set with different numbers of wrong answers.
    """
    try:
        log: Log = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(Problem(argument, str(path), f"cannot be read as JSON ({error})", "check the path")) from error
    for reason in _format_errors(log):
        fix = "give a log that TOFU's evaluation or ours has written: {task file: {metric: {index: value}}}"
        raise InputError(Problem(argument, str(path), reason, fix))
    return log


def _format_errors(log: Any) -> Iterator[str]:
    """Yield why this is not a log. Only the first reason holds: each check relies on those before it."""
    if not isinstance(log, dict) or not log.keys() & set(TASKS.values()):
        yield f"it has none of the tasks {', '.join(TASKS.values())}"
    for task in log.keys() & set(TASKS.values()):
        columns = log[task]
        if not isinstance(columns, dict) or not all(isinstance(column, dict) for column in columns.values()):
            yield f"{task} is not {{metric: {{index: value}}}}"
        if len({frozenset(column) for column in columns.values()}) > 1:
            yield f"the metrics of {task} do not have the same examples"
        if not all(index.isdecimal() for column in columns.values() for index in column):
            yield f"the examples of {task} are not numbered"
        yield from _value_errors(task, columns)
        texts = columns.get("generated_text", {}).values()
        if not all(isinstance(row, list) and [type(text) for text in row] == [str] * 3 for row in texts):
            yield f"generated_text of {task} is not prompt, answer and reference for each example"


def _value_errors(task: str, columns: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield which numbers of a task cannot be values of their metric."""
    for metric, (least, most) in _RANGES.items():
        for index, value in columns.get(metric, {}).items():
            if not _is_number(value):
                yield f"{metric} of {task} is not a number for each example"
            if value < least or value > most:
                yield f"{metric} of {task} is {value} at example {index}: not in [0, {most:g}]"
    rows = columns.get("average_perturb_loss", {})
    for index, row in rows.items():
        if not isinstance(row, list) or not row or not all(map(_is_number, row)):
            yield f"average_perturb_loss of {task} is not a list of numbers for each example"
        if min(row) < _LEAST_LOSS:
            yield f"average_perturb_loss of {task} is {min(row)} at example {index}: a loss is at least 0"
    count = len(next(iter(rows.values()), []))
    for metric in ("average_perturb_loss", "perturb_loss", "num_token_perturb"):
        for index, row in columns.get(metric, rows).items():
            if not isinstance(row, list) or len(row) != count:
                yield f"{metric} of {task} does not have {count} wrong answers at example {index}, unlike the first one"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
