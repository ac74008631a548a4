"""Callbacks for the progress of an evaluation. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of items finished so far.
Progress = Callable[[int], None]


def continued(progress: Progress | None, finished: int) -> Progress | None:
    """Return the callback for a part of the work that starts after `finished` items."""
    return None if progress is None else lambda done: progress(finished + done)
