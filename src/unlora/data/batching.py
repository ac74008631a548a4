"""How many examples go into a batch: as many as the memory holds, and half of that where it was too small."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


@dataclass
class BatchLimit:
    """The largest batch that may be made.

    Args:
        rows: the most examples in a batch.
        tokens: the most tokens in a batch, including padding. A single example may have more.
        extra: tokens that each example will get in addition, such as those of a generated answer.
    """

    rows: float = math.inf
    tokens: float = math.inf
    extra: int = 0

    def __post_init__(self) -> None:
        self._last = (0, 0)

    def count(self, lengths: Sequence[int], start: int) -> int:
        """Return how many examples from `start` on make up the next batch, given the lengths of all."""
        count = longest = 0
        for length in lengths[start:]:
            longest = max(longest, length + self.extra)
            if count and (count >= self.rows or (count + 1) * longest > self.tokens):
                break
            self._last = (count + 1, (count + 1) * longest)
            count += 1
        return count

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Allow half of the last batch from now on, and say so.

        Args:
            error: what to raise if there is no half. It must have no traceback, which would hold tensors.

        Raises:
            torch.OutOfMemoryError: the last batch was a single example.
        """
        rows, tokens = self._last
        if rows <= 1:
            raise error
        self.tokens = tokens // 2
        reason = "out of memory with a batch of %d rows (%d tokens): it goes on with at most %d tokens"
        logger.warning(reason, rows, tokens, self.tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
