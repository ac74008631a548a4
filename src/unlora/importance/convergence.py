"""Estimate from two halves of the data how close an importance is to the one from unlimited data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor


def stability(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Estimate the correlation of an importance with the one from unlimited data, given the importances of two halves.

    Spearman's rank correlation r between the halves, averaged over layers, is the reliability of a measurement on half
    of the data. The reliability on all of the data is 2r/(1 + r) (Spearman and Brown 1910), and its square root is the
    correlation with the true values.

    Args:
        one: {layer: [out]} row importance from one half.
        other: {layer: [out]} row importance from the other half.

    Returns:
        A value from 0 to 1.
    """
    values = [rank_correlation(one[name].cpu().numpy(), other[name].cpu().numpy()) for name in one]
    mean = max(0.0, float(np.mean(values)))
    return float(np.sqrt(2 * mean / (1 + mean)))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two arrays, [rows] each.

    It is undefined for constant arrays. Then this returns 1 if both are constant, and otherwise 0.
    """
    constant = [np.ptp(values) == 0 for values in (one, other)]
    return float(all(constant)) if any(constant) else float(spearmanr(one, other).statistic)
