"""Run examples in batches, and in smaller ones where the memory is too small for a batch."""

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
    """Call `run` with the examples in their order, in padded batches, each with the indices of its examples.

    If the memory is too small for a batch, the limit is halved, and the batch's examples are run in smaller ones. So
    `run` must leave nothing behind if it fails.

    Args:
        run: called with each batch.
        examples: tokenised.
        limit: how large a batch may be.
        pad_id: the id to pad with.
        side: where to pad.
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
    """Return the error if the memory is too small for what is run, without the frames that hold its tensors."""
    try:
        run()
    except torch.OutOfMemoryError as error:
        if in_lockstep():  # the other processes have run this batch
            raise
        return error.with_traceback(None)
    return None
