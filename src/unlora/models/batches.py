"""Run examples in batches, and retry with smaller batches when out of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from unlora.common.distributed import in_lockstep
from unlora.data.batching import BatchLimit
from unlora.data.encoding import Example
from unlora.data.padding import Batch, pad_batch


def run_in_batches(
    run: Callable[[range, Batch], None],
    examples: Sequence[Example],
    limit: BatchLimit,
    pad_id: int,
    side: str = "right",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Call `run` on padded batches of the examples, in order.

    If a batch does not fit in memory, the limit is halved and its examples are run again in smaller batches. A failed
    `run` must therefore have no side effects.

    Args:
        run: called with the indices of a batch's examples, and the batch.
        examples: tokenised examples.
        limit: the maximum size of a batch.
        pad_id: the id to pad with.
        side: the side to pad on, "left" or "right".
        progress: called after each batch with the number of examples done so far.

    Raises:
        torch.OutOfMemoryError: the memory is too small for a single example.
    """
    lengths, start = [len(example["input_ids"]) for example in examples], 0
    while start < len(examples):
        places = range(start, start + limit.count(lengths, start))
        failure = out_of_memory(lambda: run(places, pad_batch([examples[place] for place in places], pad_id, side)))  # noqa: B023 - called at once
        if failure is not None:
            limit.halve(failure)
            continue
        start = places.stop
        if progress is not None:
            progress(start)


def out_of_memory(run: Callable[[], object]) -> torch.OutOfMemoryError | None:
    """Call `run`, and return an out-of-memory error without its traceback, whose frames keep tensors alive."""
    try:
        run()
    except torch.OutOfMemoryError as error:
        if in_lockstep():  # the other processes have run this batch, so they would not repeat it
            raise
        return error.with_traceback(None)
    return None
