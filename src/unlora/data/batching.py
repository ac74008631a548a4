"""Choose the number of examples in a batch, and halve it when the memory is too small."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)


@dataclass
class BatchLimit:
    """The maximum size of a batch.

    Args:
        rows: the maximum number of examples.
        tokens: the maximum number of tokens, including padding. A single example may have more.
        extra: tokens that each example will gain, such as those of a generated answer.
    """

    rows: float = math.inf
    tokens: float = math.inf
    extra: int = 0

    def __post_init__(self) -> None:
        self._last = (0, 0)

    def count(self, lengths: Sequence[int], start: int) -> int:
        """Return the number of examples in the batch that begins at `start`, given the lengths of all examples."""
        count = longest = 0
        for length in lengths[start:]:
            longest = max(longest, length + self.extra)
            if count and (count >= self.rows or (count + 1) * longest > self.tokens):
                break
            self._last = (count + 1, (count + 1) * longest)
            count += 1
        return count

    def halve(self, error: torch.OutOfMemoryError) -> None:
        """Limit batches to half the tokens of the last one, and log a warning.

        Args:
            error: raised if the last batch cannot be halved. It must have no traceback, which would keep tensors alive.

        Raises:
            torch.OutOfMemoryError: the last batch was a single example.
        """
        rows, tokens = self._last
        if rows <= 1:
            raise error
        self.tokens = tokens // 2
        reason = "out of memory with a batch of %d rows (%d tokens): continuing with at most %d tokens"
        logger.warning(reason, rows, tokens, self.tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
