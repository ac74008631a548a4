"""Read and write evaluation logs: TOFU's published format, its older and single-task files, and open-unlearning's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.common.files import write_text
from unlora.common.reading import check_finite, read_json
from unlora.evals import open_unlearning_muse
from unlora.evals.log_format import FILES, KEPT, TASKS, Log, in_order, is_number
from unlora.evals.open_unlearning import (
    document_errors,
    from_document,
    is_document,
    numbers,
    summary_of,
    to_document,
)
from unlora.settings.evaluation import EVAL, SUMMARY, summary_file

_LEAST_LOSS = -1e-6  # rounding may make a loss of 0 slightly negative
# Metric -> its smallest and largest possible value.
_RANGES = {
    "avg_gt_loss": (_LEAST_LOSS, math.inf),
    "rougeL_recall": (0.0, 1.0),
    "avg_paraphrased_loss": (_LEAST_LOSS, math.inf),
    "truth_ratio": (0.0, math.inf),
}
_DIVERGED = "the weights of the model may have diverged, or overflow in their number format"
_FIX = (
    "give a log that TOFU's or unlora's evaluation has written ({task file: {metric: {index: value}}}), a single task "
    "under TOFU's own file name, or a *_EVAL.json or *_SUMMARY.json of open-unlearning"
)


def write_log(log: Log, path: str | Path) -> None:
    """Write a log atomically, replacing an existing file.

    A file whose name ends in `_EVAL.json` is written in open-unlearning's format, with its `_SUMMARY.json` next to it.
    A file whose name ends in `_SUMMARY.json` only has the aggregated values.
    """
    name = str(path)
    if not name.endswith((EVAL, SUMMARY)):
        check_finite({task: columns for task, columns in log.items() if task != KEPT})
        write_text(path, json.dumps(log))
        return
    if name.endswith(EVAL):
        write_text(path, json.dumps(to_document(log), indent=4))
    summary = summary_of(log.get(KEPT, {}), numbers(log))
    write_text(summary_file(name) or name, json.dumps(summary, indent=4))


def read_content(path: str | Path) -> Any:
    """Return the content of a log file. Only values that open-unlearning computed may be NaN or infinite.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not JSON, or another number in it is not finite.
    """
    content = read_json(path, finite=False)
    if not (is_document(content) or open_unlearning_muse.is_document(content)):
        is_dict = isinstance(content, dict)
        check_finite({name: part for name, part in content.items() if name != KEPT} if is_dict else content)
    return content


def read_log(path: str | Path, argument: str = "log") -> Log:
    """Read a log. `argument` is the argument that names the path, for error messages.

    Besides TOFU's format, logs with lists in place of {index: value}, single tasks, and the files of open-unlearning
    are supported.

    Raises:
        InputError: the file does not exist, is not JSON or has none of these formats, a loss is below 0, a recall is
            outside [0, 1], or examples of one set have different numbers of wrong answers.
    """
    try:
        content = read_content(path)
    except (OSError, ValueError) as error:
        raise InputError(Problem(argument, str(path), f"cannot be read as JSON ({error})", "check the path")) from error
    if is_document(content):
        for reason in document_errors(content):
            raise InputError(Problem(argument, str(path), reason, _FIX))
        log = _indexed(from_document(content))
    else:
        log = _indexed(_as_log(content, Path(path).name))
    for reason in _format_errors(log):
        raise InputError(Problem(argument, str(path), reason, _FIX))
    return log


def _as_log(content: Any, name: str) -> Any:
    """Return the content as a log. A single task is recognised by its columns and the name of its file."""
    if isinstance(content, dict) and "avg_gt_loss" in content and name in FILES.values():
        return {name: content}
    return content


def _indexed(log: Any) -> Any:
    """Return the log with columns {index: value} in the order of the indices. Older logs have lists."""
    if not isinstance(log, dict):
        return log
    return {
        task: columns
        if task == KEPT or not isinstance(columns, dict)
        else {name: _by_index(column) for name, column in columns.items()}
        for task, columns in log.items()
    }


def _by_index(column: Any) -> Any:
    if isinstance(column, list):
        return {str(index): value for index, value in enumerate(column)}
    if isinstance(column, dict) and all(map(str.isdecimal, column)):
        return in_order(column)
    return column


def _format_errors(log: Any) -> Iterator[str]:
    """Yield the reasons why this is not a log. Only the first is valid: each check assumes that those before passed."""
    if not isinstance(log, dict) or not log.keys() & {*FILES.values(), KEPT}:
        yield f"it has none of the tasks {', '.join(TASKS.values())}"
    for task in [task for task in FILES.values() if task in log]:
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
    """Yield the reasons why values of a task cannot be values of their metric."""
    for metric, (least, most) in _RANGES.items():
        for index, value in columns.get(metric, {}).items():
            if not is_number(value):
                yield f"{metric} of {task} is not a number for each example"
            if not math.isfinite(value):
                yield f"{metric} of {task} is {value} at example {index}: {_DIVERGED}"
            if value < least or value > most:
                yield f"{metric} of {task} is {value} at example {index}: not in [0, {most:g}]"
    rows = columns.get("average_perturb_loss", {})
    for index, row in rows.items():
        if not isinstance(row, list) or not row or not all(map(is_number, row)):
            yield f"average_perturb_loss of {task} is not a list of numbers for each example"
        if not all(map(math.isfinite, row)):
            yield f"average_perturb_loss of {task} is {row} at example {index}: {_DIVERGED}"
        if min(row) < _LEAST_LOSS:
            yield f"average_perturb_loss of {task} is {min(row)} at example {index}: a loss is at least 0"
    count = len(next(iter(rows.values()), []))
    for metric in ("average_perturb_loss", "perturb_loss", "num_token_perturb"):
        for index, row in columns.get(metric, rows).items():
            if not isinstance(row, list) or len(row) != count:
                yield f"{metric} of {task} does not have {count} wrong answers at example {index}, unlike the first one"
