"""How close an importance is to the one from unlimited data, estimated from two halves of what was measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor


def stability(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Estimate how an importance correlates with the one from unlimited data, given that of either half of its data.

    Spearman's rank correlation r of the halves, averaged over layers, is the reliability of half the data. That of all
    of it is 2r/(1 + r) (Spearman and Brown 1910), and the square root of a reliability is the correlation with what is
    measured.

    Args:
        one: {layer: [out]} row importance from one half.
        other: the same from the other half.

    Returns:
        A value from 0 to 1.
    """
    values = [rank_correlation(one[name].cpu().numpy(), other[name].cpu().numpy()) for name in one]
    mean = max(0.0, float(np.mean(values)))
    return float(np.sqrt(2 * mean / (1 + mean)))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation of [rows] and [rows].

    It is undefined where one of them is constant. Here it is then 1 if both are constant, else 0.
    """
    constant = [np.ptp(values) == 0 for values in (one, other)]
    return float(all(constant)) if any(constant) else float(spearmanr(one, other).statistic)
