"""How many examples an importance needs: measure in two halves, and stop when they agree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from unlora.importance.moments import Moments

logger = logging.getLogger(__name__)

# Examples of the first look; each one after it sees twice as many.
FIRST = 128


def moments_until_stable(
    measure: Callable[[slice], Moments],
    size: int,
    importance: Callable[[Moments], Mapping[str, Tensor]],
    enough: float,
) -> Moments:
    """Moments of as much of a sample as the importance needs.

    The sample is measured in two halves, of 128 examples together, then 256, 512 and so on. Before each step the
    importances from either half are compared, and nothing more is measured once `stability` is `enough`.

    Args:
        measure: gives the moments of a part of the sample.
        size: of the sample.
        importance: {layer: [out]} of moments.
        enough: the correlation with the importance from endless data that will do, below 1.

    Returns:
        The moments of the part that was measured.
    """
    if size <= FIRST:
        return measure(slice(0, size))
    halves = [measure(slice(half, FIRST, 2)) for half in (0, 1)]
    stop = FIRST
    while stop < size:
        reached = stability(*map(importance, halves))
        if reached >= enough:
            logger.info("the importance has converged: %d of %d retain examples (%.3f)", stop, size, reached)
            break
        start, stop = stop, min(2 * stop, size)
        for half in range(min(2, stop - start)):
            halves[half] += measure(slice(start + half, stop, 2))
    return halves[0] + halves[1]


def stability(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Estimated correlation of an importance with the one from endless data, from two that saw half of its data each.

    Their rank correlation r (Spearman's, mean over the layers) is the reliability of half the data, 2r/(1 + r) that of
    all (Spearman and Brown 1910), and its root the correlation with what is measured.

    Args:
        one: {layer: [out]} row importance from one half.
        other: from the other half.

    Returns:
        0 to 1.
    """
    values = [rank_correlation(one[name].cpu().numpy(), other[name].cpu().numpy()) for name in one]
    mean = max(0.0, float(np.mean(values)))
    return float(np.sqrt(2 * mean / (1 + mean)))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; of rows that are all alike, 1 if those of the other are so too, else 0."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (one, other)]
    spreads = [float(np.linalg.norm(values)) for values in ranks]
    if not all(spreads):
        return float(not any(spreads))
    return float(ranks[0] @ ranks[1]) / (spreads[0] * spreads[1])
