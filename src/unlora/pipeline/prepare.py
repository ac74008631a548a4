"""Load the data and the model of a request, and check everything that can be checked before any pass over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlora.adapter import check_adapter_settings
from unlora.benchmarks.tofu import check_forget_quality
from unlora.common.distributed import together
from unlora.common.errors import raise_if
from unlora.data import (
    Stream,
    TextFormat,
    alternate_rows,
    check_overlap,
    encode_records,
    load_set,
    without_short_texts,
)
from unlora.data.sources import Record
from unlora.evals import Log, read_log
from unlora.pipeline.evaluation import evaluation_sets, known_log
from unlora.pipeline.importance import RETAIN_SHARE, too_few_examples
from unlora.pipeline.job import Job
from unlora.pipeline.loading import load_start
from unlora.pipeline.request import Request
from unlora.runs.forgotten import check_not_taught_again
from unlora.training.stopping import unseen_test


def prepare(
    request: Request, sets: Mapping[str, Sequence[Record]] | None = None, retrained_log: Log | None = None
) -> Job:
    """Check the request, and load what it names. Arguments as for `unlearn`.

    Raises:
        InputError: anything wrong with the settings, the data or the model.
    """
    with together():  # no process may write before all have seen that the folder is free
        request.check()
        return _load(request, sets, retrained_log)


def _load(request: Request, sets: Mapping[str, Sequence[Record]] | None, retrained_log: Log | None) -> Job:
    data, evaluation = request.data, request.evaluation
    forget_rows = load_set(data, "forget")
    stream = retain_stream(request, len(forget_rows))
    retain_rows = load_set(data, "retain", stream)
    used_forget = without_short_texts(forget_rows, data.min_characters, "forget_data")
    used_retain = without_short_texts(retain_rows, data.min_characters, "retain_data")
    check_overlap(used_forget, used_retain)
    check_not_taught_again(used_retain, request.model.on)
    # Alternates come before the model is loaded, because rows without one are refused.
    seed = request.args.pairing_seed
    alternates = alternate_rows(used_forget, data.alternate_key, seed) if request.reads_alternates else None
    model, tokenizer = load_start(request.model)
    raise_if([*check_adapter_settings(model, request.args), *request.args.model_problems(model)])
    text_format = TextFormat(tokenizer, data.prompt_format, usable_length(model, data.max_length), data.max_chunks)
    forget = encode_records(used_forget, text_format, argument="forget_data")
    retain = encode_records(used_retain, text_format, argument="retain_data")
    raise_if(too_few_examples(request.importance, forget, retain))
    sets = evaluation_sets(evaluation, forget_rows, retain_rows) if sets is None else sets
    if retrained_log is None and evaluation.retrain_log:
        retrained_log = read_log(evaluation.retrain_log, "retrain_log")
    if retrained_log is not None:
        check_forget_quality(sets, retrained_log, evaluation.ds_size)
    sizes = evaluation.ds_size, evaluation.eval_batch_size
    return Job(
        request=request,
        model=model,
        text_format=text_format,
        forget_rows=forget_rows,
        retain_rows=retain_rows,
        used_forget_rows=used_forget,
        forget=forget,
        retain=retain,
        sets=sets,
        alternates=encode_records(alternates, text_format, argument="alternates") if alternates else None,
        unseen=unseen_test(request.stopping, forget_rows, retain_rows, text_format, *sizes),
        original_log=known_log(evaluation, sets),
        retrained_log=retrained_log,
    )


def retain_stream(request: Request, forget_rows: int) -> Stream | None:
    """How many retain rows a streamed run can use: those of the estimate, or one for each pair of the whole training.

    None if the retain set is not streamed.
    """
    if not request.data.streaming:
        return None
    args = request.args
    pairs = math.ceil(args.num_train_epochs) * forget_rows
    if args.max_steps > 0:
        pairs = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = max(pairs, request.importance.retain_samples or RETAIN_SHARE * forget_rows)
    return Stream(rows, args.pairing_seed, request.data.shuffle_buffer_size)


def usable_length(model: Any, max_length: int) -> int:
    """`max_length`, or the number of the model's positions if it has fewer."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_length
    return min(max_length, positions)
