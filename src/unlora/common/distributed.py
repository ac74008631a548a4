"""Several processes that work on one job, as `accelerate launch` starts them.

Every process runs the same code. In a single process all functions here are trivial. Some functions have to be called
by all processes: they wait for the others, so a call in only some of them would never return.
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
    """Return whether this process is the one that writes and prints. It is known before torch is loaded."""
    return int(os.environ.get("RANK", 0)) == 0


def on_cpu() -> bool:
    """Return whether the job runs on the CPU, because the user asked for it or there is no other device.

    Without a device, accelerate would take each process for the only one. Its environment variable prevents that.
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
    """Return whether no process may run the model without the others.

    If the model is sharded over the processes (`unlora.models.sharding`), each forward pass needs all of them. Work
    that they could share is then done by all of them alike.
    """
    return _lockstep


def keep_in_step() -> None:
    """Make `in_lockstep` return True from now on."""
    global _lockstep
    _lockstep = True


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of the items: every n-th of n processes, or all items in lockstep."""
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
    """Replace each tensor by that of the main process. All processes must call this."""
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor, 0)


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all processes. All must call this, with tensors of the same shapes."""
    import torch.distributed as dist

    if processes()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def together() -> Iterator[None]:
    """Raise an error of one process in all of them, and let none continue before all have finished the block.

    Without this, the others would wait forever for the process that failed. All processes must enter the block, and
    nothing inside may wait for other processes.
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
    """Return the error that the other processes raise. Most errors cannot be pickled, so they become a text."""
    if error is None or isinstance(error, InputError):
        return error
    return RuntimeError(f"process {processes()[0]} failed: {type(error).__name__}: {error}")


def on_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process only, and return its result in all. All processes must call this."""
    result: Any = None
    with together():
        if processes()[0] == 0:
            result = function()
    return gather(result)[0]


def main_only(function: Callable[P, T]) -> Callable[P, T]:
    """Let only the main process run the function, as `on_main`; a decorator."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_main(lambda: function(*args, **kwargs))

    return wrapped
