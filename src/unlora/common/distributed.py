"""Helpers for a job that runs in several processes, as started by `accelerate launch`.

Every process runs the same code. With a single process, all functions here are trivial. Collective functions must be
called by all processes: they wait for the others, so a call in only some processes would never return.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from unlora.common.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")
K = TypeVar("K")
V = TypeVar("V")


def is_main() -> bool:
    """Return whether this process is the one that writes and prints. Does not load torch."""
    return int(os.environ.get("RANK", 0)) == 0


def on_cpu() -> bool:
    """Return whether the job runs on the CPU, because the user requested it or there is no accelerator.

    On a machine without an accelerator, accelerate treats every process as the only one unless its environment variable
    for CPU runs is set. This function sets it for processes of `accelerate launch`.
    """
    if "LOCAL_RANK" in os.environ:
        import torch

        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")


def processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


_lockstep = False


def in_lockstep() -> bool:
    """Return whether all processes have to run the model together.

    If the model is sharded over the processes (`unlora.models.sharding`), each forward pass needs all of them. Work
    that could be divided among them is then repeated in every process instead.
    """
    return _lockstep


def keep_in_step() -> None:
    """Make `in_lockstep` return True for the rest of this process."""
    global _lockstep
    _lockstep = True


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of the items: every n-th item with n processes, or all items in lockstep."""
    index, count = (0, 1) if in_lockstep() else processes()
    return items[index::count]


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks. All processes must call this."""
    import torch.distributed as dist

    count = processes()[1]
    values: list[Any] = [value] * count
    if count > 1:
        dist.all_gather_object(values, value)
    return values


def merge(part: Mapping[K, V]) -> dict[K, V]:
    """Return the entries of all processes in one dictionary. All processes must call this."""
    return {key: value for values in gather(dict(part)) for key, value in values.items()}


def add_columns(rows: Sequence[Sequence[float]]) -> list[Any]:
    """Return the sum of each column over the rows of all processes. All processes must call this."""
    return [sum(column) for column in zip(*(row for part in gather(rows) for row in part), strict=True)]


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor with the main process's values. All processes must call this."""
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor, 0)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes. All processes must call this with the same shapes."""
    import torch.distributed as dist

    if processes()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def together() -> Iterator[None]:
    """Raise an error of one process in all of them, and wait at the end of the block until all have finished it.

    Without this, the other processes would wait forever for one that failed. All processes must enter the block, and
    nothing inside it may wait for other processes.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    errors = gather(_sendable(error))
    if error is not None:
        raise error
    for other in errors:
        if other is not None:
            raise other


def _sendable(error: Exception | None) -> Exception | None:
    """Return the error for the other processes to raise. Many errors cannot be pickled, so only their text is sent."""
    if error is None or isinstance(error, InputError):
        return error
    return RuntimeError(f"process {processes()[0]} failed: {type(error).__name__}: {error}")


def on_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process only, and return its result in every process. All must call this."""
    result: Any = None
    with together():
        if processes()[0] == 0:
            result = function()
    return gather(result)[0]


def main_only(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that it runs in the main process only, through `on_main`."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_main(lambda: function(*args, **kwargs))

    return wrapped
