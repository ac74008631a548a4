from __future__ import annotations

import numpy as np
import pytest

from helpers.reported import attacks, make_run
from unlora.benchmarks import Measured
from unlora.report.read import read_run
from unlora.report.statistics import Estimate, difference, estimate_of, mean_estimate, utility_draws


def test_a_mean_s_interval_is_about_two_standard_errors_each_way():
    """200 standard normal values: the standard error is 1 / √200 = 0.071."""
    values = np.random.default_rng(1).standard_normal(200)
    found = mean_estimate(values)
    assert found.value == pytest.approx(values.mean())
    for end, sign in ((found.low, -1), (found.high, 1)):
        assert end - found.value == pytest.approx(sign * 1.96 * values.std() / 200**0.5, rel=0.15)


def test_one_example_has_no_spread():
    found = mean_estimate(np.array([0.25]))
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_an_interval_ends_where_its_quantity_does(tmp_path):
    """With standard error 0.25, an interval reaches 1.96 · 0.25 = 0.49 in each direction.

    The attack raises the probability to 0.99 ± 0.01 (standard error), 0.59 above the retrained model's.
    """
    assert estimate_of(Measured(0.75, 0.25)) == Estimate(0.75, 0.26, 1.24)
    assert estimate_of(Measured(0.75, 0.25), (0, 1)) == Estimate(0.75, 0.26, 1)
    assert estimate_of(Measured(0.25, 0.25), (0, 1)) == Estimate(0.25, 0, 0.74)
    [attacked] = [
        one for one in read_run(make_run(tmp_path, attacks=attacks(0.59))).attacks.found if one.name != "none"
    ]
    assert attacked.estimate("unlearned").high == 1
    assert attacked.estimate("unlearned_minus_retrained").high == pytest.approx(0.59 + 0.0196)


def test_metrics_of_a_set_and_two_models_are_drawn_together():
    """If a metric is 1 higher than another one in every example, it is 1 higher in every bootstrap draw."""
    values = np.random.default_rng(2).random(50)
    one, other = (utility_draws({"set": {"metric": column}}) for column in (values, values + 1))
    assert len(one) == 1000
    assert other - one == pytest.approx(np.ones(1000))
    both = utility_draws({"set": {"one": values, "other": values + 1}})
    assert both == pytest.approx(2 / (1 / one + 1 / other))


def test_a_paired_difference_does_not_count_what_both_share():
    values = np.random.default_rng(3).random(50) * 100
    paired, unpaired = (difference(values + 1, values, paired=paired) for paired in (True, False))
    assert (paired.value, paired.low, paired.high) == pytest.approx((1, 1, 1))
    assert paired.excludes_zero
    assert unpaired.value == pytest.approx(1)
    assert unpaired.low < 0 < unpaired.high
    assert not unpaired.excludes_zero


@pytest.mark.parametrize(("other", "expected"), [(1 / 3, 0.5), (0.0, 0.0)])
def test_utility_draws_by_hand(other, expected):
    """The harmonic mean of 1 and 1/3 is 2 / (1 + 3) = 1/2. That of 1 and 0 is 0."""
    sets = {"retain": {"probability": np.array([1.0])}, "facts": {"probability": np.full(5, other)}}
    assert utility_draws(sets) == pytest.approx(np.full(1000, expected))
