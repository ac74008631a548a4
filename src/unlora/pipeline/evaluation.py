"""The evaluation of a run: the same rows on the model before and after unlearning, each as a log on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.adapter.offset import original_model
from unlora.common.distributed import on_main
from unlora.common.errors import InputError, Problem
from unlora.common.progress import shown
from unlora.data import TextFormat
from unlora.data.sources import Record
from unlora.evals import Log, evaluate, read_log, write_log
from unlora.evals.tofu import TASKS, add_text_columns, configured_sets, text_count
from unlora.runs.folder import EVALUATIONS
from unlora.settings import EvalConfig, EvalSettings

logger = logging.getLogger(__name__)


def evaluation_sets(
    config: EvalConfig, forget: Sequence[Record], retain: Sequence[Record]
) -> dict[str, Sequence[Record]]:
    """What is evaluated: the sets the user names, or forget and retain set where their rows are questions."""
    if config.eval_data:
        return dict(configured_sets(config))
    rows = {"forget": forget, "retain": retain}
    if all("question" in part[0] for part in rows.values()):
        return rows
    logger.warning("the rows are not questions and answers: only the losses are reported; name eval_data for more")
    return {}


def known_log(config: EvalConfig, sets: Mapping[str, Sequence[Record]]) -> Log | None:
    """The log of the model before that the user has, if any; one of other sets or sizes is refused."""
    if config.original_log is None:
        return None
    log = read_log(config.original_log, "original_log")
    sizes = {TASKS[name]: len(rows[: config.ds_size]) for name, rows in sets.items()}
    if {task: len(columns["generated_text"]) for task, columns in log.items()} != sizes:
        reason = f"it is of other sets or sizes than this evaluation, which has {sizes}"
        raise InputError(Problem("original_log", config.original_log, reason, "leave it out, or evaluate anew"))
    return log


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated on each model, and where the logs go."""

    sets: Mapping[str, Sequence[Record]]
    text_format: TextFormat
    config: EvalConfig
    folder: Path

    def log(self, name: str, model: Any, known: Log | None = None) -> Log | None:
        """The model's log, saved in the run's folder; a resumed run that has it already reads it from there.

        None if there is nothing to evaluate.
        """
        if not self.sets:
            return None
        path = self.folder / EVALUATIONS[name]
        if known is None and not on_main(path.exists):
            known = evaluate_shown(name, model, self.sets, self.text_format, self.config)
        if known is not None:
            on_main(lambda: write_log(known, path))
        return on_main(lambda: read_log(path))


def evaluate_shown(
    name: str, model: Any, sets: Mapping[str, Sequence[Record]], text_format: TextFormat, settings: EvalSettings
) -> Log:
    """`evaluate` with a progress bar, and how good the answers are as text.

    The model without its adapters judges the text, or the model itself where it has none.
    """
    with shown(f"evaluation of the {name} model", " texts", text_count(sets, settings)) as progress:
        log = evaluate(model, sets, text_format, settings, progress)
    with original_model(model) as original:
        return add_text_columns(log, sets, original, text_format, settings)


def samples(original: Log, unlearned: Log) -> list[dict[str, str]]:
    """Question, reference and the two generated answers of every evaluated row."""
    rows = []
    for task, columns in original.items():
        for index, (prompt, old, reference) in columns["generated_text"].items():
            new = unlearned[task]["generated_text"][index][1]
            rows.append({"task": task, "prompt": prompt, "reference": reference, "original": old, "unlearned": new})
    return rows
