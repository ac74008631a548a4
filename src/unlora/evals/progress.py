"""How an evaluation reports its progress. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of items finished so far.
Progress = Callable[[int], None]


def continued(progress: Progress | None, finished: int) -> Progress | None:
    """Return the callback for a later part of the work, before which `finished` items were finished."""
    return None if progress is None else lambda done: progress(finished + done)
