"""The evaluation within a run: all models answer the same rows, and the log of each is written to the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from unlora.adapter.offset import original_model
from unlora.common.distributed import on_main
from unlora.common.errors import InputError, Problem
from unlora.common.progress import shown
from unlora.data import TextFormat
from unlora.data.conversations import answers_of
from unlora.data.sources import Record, fingerprint, is_text
from unlora.evals import Log, evaluate, read_log, summarise, write_log
from unlora.evals.log_format import FILES, TASKS
from unlora.evals.questions import read_questions
from unlora.evals.tofu import add_text_columns, configured_sets, text_count
from unlora.pipeline.job import Job
from unlora.runs.folder import EVALUATIONS
from unlora.settings import EvalConfig, EvalSettings

logger = logging.getLogger(__name__)


def evaluation_sets(
    config: EvalConfig, forget: Sequence[Record], retain: Sequence[Record]
) -> dict[str, Sequence[Record]]:
    """Return the rows to evaluate: the sets that the user names, or else the forget and the retain set.

    Plain texts have no answers to evaluate. They are left out, with a warning. If the forget or the retain set is
    plain text only, nothing is evaluated, and a warning says so.
    """
    if config.eval_data:
        return dict(configured_sets(config))
    rows = {"forget": forget, "retain": retain}
    without_answers = [name for name, part in rows.items() if all(map(is_text, part))]
    if without_answers:
        reason = f"the {' and the '.join(without_answers)} set is plain text, without questions or conversations"
        logger.warning("%s: only the losses are reported; name eval_data for more", reason)
        return {}
    warn_of_texts(rows)
    return rows


def warn_of_texts(sets: Mapping[str, Sequence[Record]]) -> None:
    """Warn of plain texts among rows whose answers are evaluated."""
    for name, rows in sets.items():
        if texts := sum(map(is_text, rows)):
            logger.warning("%d plain texts of the %s set have no answers to evaluate", texts, name)


def known_log(config: EvalConfig, sets: Mapping[str, Sequence[Record]]) -> Log | None:
    """Return the log of the original model that the user provides, if any.

    Raises:
        InputError: the log is of other sets, or of sets with other sizes.
    """
    if config.original_log is None:
        return None
    log = read_log(config.original_log, "original_log")
    sizes = {FILES[name]: len(read_questions(name, rows, config.ds_size)) for name, rows in sets.items()}
    if {task: len(log[task].get("avg_gt_loss", ())) for task in FILES.values() if task in log} != sizes:
        reason = f"it is of other sets or sizes than this evaluation, which has {sizes}"
        raise InputError(Problem("original_log", config.original_log, reason, "remove it to evaluate anew"))
    return log


def evaluate_in_run(job: Job, name: str, model: PreTrainedModel, known: Log | None = None) -> Log | None:
    """Return the log of a model, after saving it in the run's folder.

    Args:
        job: the run.
        name: "original", "unlearned" or "retrained".
        model: the model to evaluate. If its log is known, this model only judges the text, with its adapters off.
        known: the model's log, if the user provides one.

    Returns:
        The log, or None if there is nothing to evaluate.
    """
    if not job.sets:
        return None
    file = EVALUATIONS[name]
    if not job.is_finished(file):  # a resumed run may have the log already
        if known is None:
            known = evaluate_shown(name, model, job.sets, job.text_format, job.request.evaluation)
        measured = _with_text(job, known, model)
        job.write(file, lambda path: write_log(measured, path))
    return on_main(lambda: read_log(job.folder / file))


def _with_text(job: Job, log: Log, model: PreTrainedModel) -> Log:
    """Add measures of text quality to the sets of a log that lack them, if they have the size of the evaluated sets."""
    asked, limit = {name: rows for name, rows in job.sets.items() if name in TASKS}, job.request.evaluation.ds_size
    sizes = {name: len(read_questions(name, rows, limit)) for name, rows in asked.items()}
    columns = {name: log.get(TASKS[name], {}) for name in asked}
    sets = {
        name: rows
        for name, rows in asked.items()
        if "answer_measures" not in columns[name] and len(columns[name].get("generated_text", ())) == sizes[name]
    }
    with original_model(model) as original:
        return add_text_columns(log, sets, original, job.text_format, job.request.evaluation)


def evaluate_shown(
    name: str,
    model: PreTrainedModel,
    sets: Mapping[str, Sequence[Record]],
    text_format: TextFormat,
    settings: EvalSettings,
) -> Log:
    """Call `evaluate` with a progress bar, and add measures of the answers' quality as text.

    The text is judged by the model with its adapters switched off, or as it is if it has none.
    """
    with shown(f"evaluation of the {name} model", " texts", text_count(sets, settings)) as progress:
        log = evaluate(model, sets, text_format, settings, progress)
    with original_model(model) as original:
        return add_text_columns(log, sets, original, text_format, settings)


def evaluate_in_training(job: Job, model: nn.Module) -> dict[str, float]:
    """Evaluate the model during training. Return the metrics of each set as `<set>_<metric>`, and those of all sets."""
    log = evaluate(model, job.sets, job.text_format, job.request.evaluation)
    summary = summarise(log, job.retrained_log)
    sets = {f"{name}_{metric}": value for name, values in summary["sets"].items() for metric, value in values.items()}
    overall = ("model_utility", "model_utility_geometric", "forget_quality", "log10_forget_quality")
    numbers = {**sets, **{name: summary[name] for name in overall}}
    return {name: float(value) for name, value in numbers.items() if value is not None}


def trained_on(job: Job) -> dict[str, int]:
    """Return {evaluated set: number of its answers that the run also trains on}, without the forget set."""
    known = {fingerprint(row) for row in job.rows.used_retain}
    size = job.request.evaluation.ds_size
    trained = {
        name: [fingerprint(row) in known for row in rows for _ in answers_of(row, name)]
        for name, rows in job.sets.items()
        if name != "forget"
    }
    return {name: sum(answers[:size]) for name, answers in trained.items()}


def samples(original: Log, unlearned: Log) -> list[dict[str, Any]]:
    """Return the prompt, the right answer and both models' answers of every evaluated row, and the turns of a chat."""
    rows = []
    for task in [name for name in TASKS.values() if name in original]:
        for index, (prompt, old, reference) in original[task].get("generated_text", {}).items():
            new = unlearned[task]["generated_text"][index][1]
            row = {"task": task, "prompt": prompt, "reference": reference, "original": old, "unlearned": new}
            turns = original[task].get("turns")
            rows.append(row | ({"turns": turns[index]} if turns else {}))
    return rows
