import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from unlora.importance.convergence import rank_correlation, stability


def test_the_stability_of_halves_by_hand():
    one, other = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 3])  # Spearman 1 - 6·2/(4·15) = 0.8
    assert stability({"a": one}, {"a": other}) == pytest.approx((1.6 / 1.8) ** 0.5)
    assert stability({"a": one, "b": one}, {"a": other, "b": one}) == pytest.approx((1.8 / 1.9) ** 0.5)
    assert stability({"a": one}, {"a": one}) == pytest.approx(1)
    assert stability({"a": one}, {"a": -one}) == 0


def test_rank_correlation_is_spearman_s_and_defined_for_rows_that_are_alike():
    drawn = np.random.default_rng(0)
    one, other = drawn.standard_normal(30).round(1), drawn.standard_normal(30).round(1)  # rounded, to have ties
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(np.ones(3), np.ones(3)) == 1
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0
