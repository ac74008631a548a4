"""Load the data and the model of a request, and check everything that can be checked before the model is run."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from unlora.adapter import adapter_notes, check_adapter_settings
from unlora.benchmarks.tofu import check_comparable
from unlora.common.distributed import together
from unlora.common.errors import Problem, raise_if
from unlora.data import (
    Stream,
    TextFormat,
    alternate_answers,
    check_overlap,
    encode_answers,
    encode_records,
    load_set,
    without_short_texts,
)
from unlora.data.sources import Record, is_text
from unlora.evals import Log, read_log
from unlora.models.skeleton import family_problems, skeleton
from unlora.pipeline.evaluation import evaluation_sets, known_log
from unlora.pipeline.importance import too_few_examples
from unlora.pipeline.job import Job, Rows
from unlora.pipeline.loading import comparable_model, load_start, start_problems
from unlora.pipeline.request import Request
from unlora.runs.forgotten import check_not_taught_again
from unlora.settings import ModelConfig, is_log
from unlora.training.arguments import batch_problems
from unlora.training.config import UnlearnConfig
from unlora.training.stopping import holdout_rows, unseen_test

logger = logging.getLogger(__name__)
# One in `_ASIDE` retain rows is set aside to measure what is kept, provided that makes at least `_LEAST_ASIDE` rows.
_ASIDE, _LEAST_ASIDE = 10, 8


def prepare(
    request: Request, sets: Mapping[str, Sequence[Record]] | None = None, retrained_log: Log | None = None
) -> Job:
    """Check the request, and load its data and model. The arguments are those of `unlearn`.

    Raises:
        InputError: anything wrong with the settings, the data or the model.
    """
    with together():  # no process may write before all of them have checked that the folder is free
        request.check()
        return _load(request, sets, retrained_log)


def _load(request: Request, sets: Mapping[str, Sequence[Record]] | None, retrained_log: Log | None) -> Job:
    raise_if(start_problems(request.model))
    evaluation = request.evaluation
    # Logs that the user provides are of all rows, so what is kept is measured on all rows, too.
    known = retrained_log is not None or evaluation.original_log or is_log(evaluation.retrained or "")
    rows = _load_rows(request, sets is None and not known)
    sets = evaluation_sets(evaluation, rows.forget, rows.set_aside or rows.retain) if sets is None else sets
    raise_if(_evaluation_problems(request.args, sets))
    known_retrained = _checked_retrained_log(request, sets, retrained_log)
    retrained_model = _retrained_model(request, retrained_log)
    model, text_format = _load_original(request)
    forget = encode_records(rows.used_forget, text_format, argument="forget_data")
    retain = encode_records(rows.used_retain, text_format, argument="retain_data")
    raise_if([*too_few_examples(request.importance, forget, retain), *batch_problems(request.args, len(forget))])
    sizes = evaluation.ds_size, evaluation.eval_batch_size
    return Job(
        request=request,
        model=model,
        text_format=text_format,
        rows=rows,
        forget=forget,
        retain=retain,
        sets=sets,
        alternates=encode_answers(rows.alternates, text_format, argument="alternates") if rows.alternates else None,
        unseen=unseen_test(request.stopping, rows.forget, rows.holdout, text_format, *sizes),
        original_log=known_log(evaluation, sets),
        retrained_log=known_retrained,
        retrained_model=retrained_model,
    )


def _evaluation_problems(args: UnlearnConfig, sets: Mapping[str, Sequence[Record]]) -> list[Problem]:
    if not args.evaluates or sets:
        return []
    value, reason = str(args.eval_strategy.value), "the sets are plain text, and nothing is evaluated"
    return [Problem("eval_strategy", value, reason, "remove it, or name eval_data")]


def _load_rows(request: Request, may_set_aside: bool) -> Rows:
    """Load and check all sets, so that any problem with them is found before the model is loaded.

    Args:
        request: the request, which names the sets.
        may_set_aside: whether some retain rows may be set aside, to be evaluated instead of all of them.
    """
    data = request.data
    forget = load_set(data, "forget")
    retain = load_set(data, "retain", retain_stream(request, len(forget)))
    used_forget = without_short_texts(forget, data.min_characters, "forget_data")
    used_retain = without_short_texts(retain, data.min_characters, "retain_data")
    check_overlap(used_forget, used_retain)
    check_not_taught_again(used_retain, request.model.on)
    seed = request.args.pairing_seed
    alternates = alternate_answers(used_forget, data.alternate_key, seed) if request.reads_alternates else None
    holdout = holdout_rows(request.stopping, forget, retain)
    aside: list[Record] = []
    if may_set_aside and not (request.evaluation.eval_data or data.streaming or all(map(is_text, forget))):
        aside, used_retain = split_aside(used_retain, request.evaluation.ds_size, seed)
    return Rows(forget, retain, used_forget, used_retain, alternates, holdout, aside)


def split_aside(rows: Sequence[Record], most: int | None, seed: int) -> tuple[list[Record], list[Record]]:
    """Return the retain rows on which to measure what is kept, and those that are trained on.

    Rows that are trained on would overstate what is kept. A small set cannot spare any rows, so all of its rows are
    trained on.

    Args:
        rows: the retain set.
        most: maximum number of rows to set aside; None is no limit.
        seed: seed of the random choice.
    """
    answered = [place for place, row in enumerate(rows) if not is_text(row)]  # only these can be evaluated
    count = len(answered) // _ASIDE
    if count < _LEAST_ASIDE:
        return [], list(rows)
    chosen = set(random.Random(seed).sample(answered, min(count, most or count)))
    return [rows[place] for place in sorted(chosen)], [row for place, row in enumerate(rows) if place not in chosen]


def _load_original(request: Request) -> tuple[PreTrainedModel, TextFormat]:
    """Load the model, and check that the adapter's settings and the loss fit it."""
    data, args = request.data, request.args
    outline = skeleton(request.model)
    if outline is not None:
        raise_if(_model_problems(outline, args))
    model, tokenizer = load_start(request.model)
    raise_if(_model_problems(model, args))
    for note in adapter_notes(model, args):
        logger.warning("%s", note)
    return model, TextFormat.of(tokenizer, data, model.config, data.max_chunks)


def _model_problems(model: PreTrainedModel, args: UnlearnConfig) -> list[Problem]:
    return [*family_problems(model), *check_adapter_settings(model, args), *args.model_problems(model)]


def _checked_retrained_log(request: Request, sets: Mapping[str, Sequence[Record]], log: Log | None) -> Log | None:
    evaluation = request.evaluation
    if log is None and evaluation.retrained and is_log(evaluation.retrained):
        log = read_log(evaluation.retrained, "retrained")
    if log is not None:
        check_comparable(sets, log, evaluation.ds_size)
    return log


def _retrained_model(request: Request, log: Log | None) -> ModelConfig | None:
    """Return how the retrained model is loaded, or None if the request names no such model or there is a log of it."""
    name = request.evaluation.retrained
    if log is not None or name is None or is_log(name):
        return None
    return comparable_model(request.model, name, "retrained")


def retain_stream(request: Request, forget_rows: int) -> Stream | None:
    """Return how much of a streamed retain set the run can use, or None if the set is not streamed.

    This is the larger of two numbers: the rows that the importance is estimated from, and the rows for training, which
    needs one for each forget row in each epoch.
    """
    if not request.data.streaming:
        return None
    args = request.args
    pairs = math.ceil(args.num_train_epochs) * forget_rows
    if args.max_steps > 0:
        pairs = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = max(pairs, request.importance.retain_size(forget_rows))
    return Stream(rows, args.pairing_seed, request.data.shuffle_buffer_size)
