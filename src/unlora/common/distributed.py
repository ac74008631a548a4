"""Several processes on one job, as `accelerate launch` starts them: who does what, and what they tell each other.

Every process runs the same code. In a single process all of this does nothing. What is said to be called by all
processes waits for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


def is_main() -> bool:
    """Whether this process is the one that writes and prints; known before torch is loaded."""
    return int(os.environ.get("RANK", 0)) == 0


def on_cpu() -> bool:
    """Whether the processes of this job work on the CPU: asked for, or there is nothing else.

    Said to accelerate by its environment variable, since without a device it would take each process for the only one.
    """
    if "LOCAL_RANK" in os.environ:
        import torch

        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")


def processes() -> tuple[int, int]:
    """This process's number, and how many there are."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


# Whether the processes hold one model between them, so that each forward pass is one of all.
_lockstep = False


def in_lockstep() -> bool:
    """Whether no process may run a model without the others: what could be shared is done by all, alike.

    So it is where they hold one model between them (`unlora.models.sharding`).
    """
    return _lockstep


def keep_in_step() -> None:
    """From now on, `in_lockstep`."""
    global _lockstep
    _lockstep = True


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part: every n-th item of n processes; all of them in lockstep."""
    index, count = (0, 1) if in_lockstep() else processes()
    return items[index::count]


def gather(value: T) -> list[T]:
    """The values of all processes, in their order; called by all."""
    import torch.distributed as dist

    count = processes()[1]
    values: list[Any] = [value] * count
    if count > 1:
        dist.all_gather_object(values, value)
    return values


def merge(part: Mapping[K, V]) -> dict[K, V]:
    """The entries that all processes have made; called by all."""
    return {key: value for values in gather(dict(part)) for key, value in values.items()}


def add_columns(rows: Sequence[Sequence[float]]) -> list[Any]:
    """The sum of each column over the rows of all processes, as numbers; called by all."""
    return [sum(column) for column in zip(*(row for part in gather(rows) for row in part), strict=True)]


def copy_from_main(tensors: Iterable[Any]) -> None:
    """Replaces each tensor by that of the main process; called by all."""
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor, 0)


def add_up(tensors: Iterable[Any]) -> None:
    """Replaces each tensor by its sum over all processes; called by all, with tensors of the same shapes."""
    import torch.distributed as dist

    if processes()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def together() -> Iterator[None]:
    """An error that one process meets within is raised by all of them, and none goes on before all are done.

    Entered by all processes; what is within must not wait for others itself.
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
    """The error as the other processes raise it."""
    from unlora.common.errors import InputError

    if error is None or isinstance(error, InputError):
        return error
    return RuntimeError(f"process {processes()[0]} failed: {type(error).__name__}: {error}")


def on_main(function: Callable[[], T]) -> T:
    """What `function` gives in the main process, which alone calls it; called by all."""
    result: Any = None
    with together():
        if processes()[0] == 0:
            result = function()
    return gather(result)[0]
