import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from unlora.importance.convergence import FIRST, moments_until_stable, rank_correlation, stability
from unlora.importance.moments import Moments


def moments_of(values):
    """Of a model with one parameter, whose gradients are `values` [examples, rows] of one token each."""
    values = torch.as_tensor(values)
    return Moments({"layer": values.mean(0)}, {"layer": values.square().mean(0)}, len(values), len(values))


class Sample:
    """Gradients [examples, rows], and which of them were looked at."""

    def __init__(self, values):
        self.values, self.seen = values, []

    def measure(self, part):
        self.seen += range(len(self.values))[part]
        return moments_of(self.values[part])

    def until(self, enough):
        return moments_until_stable(self.measure, len(self.values), importance, enough)


def importance(moments):
    return {"layer": moments.second["layer"]}


def noisy(size, noise, rows=40, seed=0):
    """Rows of unlike importance, each example with as much noise on top."""
    drawn = np.random.default_rng(seed)
    scale = np.linspace(1, 2, rows)
    return torch.from_numpy(scale * (1 + noise * drawn.standard_normal((size, rows))))


@pytest.mark.parametrize("size", [1, 2, FIRST, FIRST + 1, FIRST + 2, 3 * FIRST, 4 * FIRST + 3])
def test_what_never_converges_is_measured_whole_and_once(size):
    sample = Sample(noisy(size, 3.0))
    found, whole = sample.until(0.999999), moments_of(sample.values)
    assert sorted(sample.seen) == list(range(size))
    assert (found.tokens, found.examples) == (size, size)
    for name in ("mean", "second"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))


def test_it_ends_as_soon_as_the_halves_agree():
    sample = Sample(noisy(10 * FIRST, 0.0))
    found = sample.until(0.98)
    assert sorted(sample.seen) == list(range(FIRST))
    torch.testing.assert_close(found.mean, moments_of(sample.values[:FIRST]).mean)


def test_more_noise_takes_more_examples_and_the_estimate_holds():
    sizes = []
    for noise in (0.1, 1.0):
        sample = Sample(noisy(64 * FIRST, noise))
        found = importance(sample.until(0.98))["layer"]
        sizes.append(len(sample.seen))
        truth = np.linspace(1, 2, 40)
        assert rank_correlation(found.numpy(), truth) > 0.96
    assert sizes == sorted(set(sizes))


def test_the_stability_of_halves_by_hand():
    one, other = torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 3])  # Spearman 1 - 6·2/(4·15) = 0.8
    assert stability({"a": one}, {"a": other}) == pytest.approx((1.6 / 1.8) ** 0.5)
    assert stability({"a": one, "b": one}, {"a": other, "b": one}) == pytest.approx((1.8 / 1.9) ** 0.5)
    assert stability({"a": one}, {"a": one}) == pytest.approx(1)
    assert stability({"a": one}, {"a": -one}) == 0


def test_rank_correlation_is_spearman_s_and_defined_for_rows_that_are_alike():
    drawn = np.random.default_rng(0)
    one, other = drawn.standard_normal(30).round(1), drawn.standard_normal(30).round(1)  # with ties
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(np.ones(3), np.ones(3)) == 1
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0
