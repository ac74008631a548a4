import math
import zlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unlora.common.errors import InputError
from unlora.evals.membership import scores as membership

LOGP = [-1.0, -2.0, -4.0, -8.0, -0.5]
logps = st.lists(st.floats(-500, 0), min_size=1, max_size=40)
# Few distinct values, so that ties are common.
scores = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=12)


def brute_force_auc(members, others):
    wins = [(member > other) + 0.5 * (member == other) for member in members for other in others]
    return sum(wins) / len(wins)


def test_loss_zlib_and_reference_by_hand():
    """The mean of the five values is −15.5 / 5 = −3.1. That of the reference is −2, so the difference is −1.1."""
    text = "a" * 100
    assert membership.loss_score(LOGP) == pytest.approx(-3.1)
    size = membership.zlib_size(text)
    assert size == len(zlib.compress(text.encode()))
    assert membership.zlib_score(LOGP, size) == pytest.approx(-3.1 / size)
    assert membership.reference_score(LOGP, [-1.0, -3.0]) == pytest.approx(-1.1)


def test_text_that_compresses_well_counts_less():
    """At the same likelihood, a repetitive text is weaker evidence of membership."""
    regular, random = (membership.zlib_size(part) for part in ("la " * 50, "".join(map(chr, range(32, 182)))))
    assert membership.zlib_score(LOGP, regular) < membership.zlib_score(LOGP, random)


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, -8), (20, -8), (39, -8), (40, -6), (60, -14 / 3), (99, -15 / 4), (100, -3.1)]
)
def test_min_k_by_hand(percent, expected):
    """20 % of five tokens is one token, and 40 % is two: (−8 − 4) / 2 = −6."""
    assert membership.min_k_score(LOGP, percent) == pytest.approx(expected)


@given(logps)
def test_min_k_of_all_tokens_is_the_loss_score(logp):
    assert membership.min_k_score(logp, 100) == pytest.approx(membership.loss_score(logp), abs=1e-9)


@given(logps, st.integers(1, 100), st.integers(1, 100), st.randoms())
def test_min_k_rises_with_k_whatever_the_order_of_the_tokens(logp, one, other, rng):
    shuffled = rng.sample(logp, len(logp))
    low, high = sorted((one, other))
    assert membership.min_k_score(shuffled, low) <= membership.min_k_score(logp, high) + 1e-9


def test_standardised_by_hand():
    """The prediction is (1/2, 1/4, 1/4), so the mean of log p is μ = −1.5 ln 2.

    E[log² p] = (0.5 · 1 + 0.5 · 4) ln² 2, so σ² = (2.5 − 2.25) ln² 2.
    """
    two = math.log(2)
    values = membership.standardised([-two, -2 * two], [-1.5 * two] * 2, [0.5 * two] * 2)
    assert values == pytest.approx([1, -1])


@given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=20))
def test_standardised_values_of_a_prediction_have_mean_0_and_deviation_1(weights):
    p = np.array(weights) / sum(weights)
    logp = np.log(p)
    mean = p @ logp
    std = math.sqrt(p @ (logp - mean) ** 2)
    assume(std > 1e-6)  # otherwise all tokens are equally likely, and σ is rounding noise
    values = membership.standardised(logp, [mean] * len(p), [std] * len(p))
    assert p @ values == pytest.approx(0, abs=1e-6)
    assert p @ values**2 == pytest.approx(1, rel=1e-6)


@pytest.mark.slow
@given(logps, logps, st.text())
def test_zlib_scores_of_one_text_are_in_the_order_of_the_loss(one, other, text):
    low, high = sorted((one, other), key=membership.loss_score)
    size = membership.zlib_size(text)
    assert membership.zlib_score(low, size) <= membership.zlib_score(high, size) <= 0


@given(logps, logps, st.floats(-10, 10))
def test_the_reference_score_is_a_difference_of_log_probabilities(ours, theirs, more):
    score = membership.reference_score(ours, theirs)
    assert membership.reference_score(theirs, ours) == pytest.approx(-score, abs=1e-9)
    assert membership.reference_score([value + more for value in ours], theirs) == pytest.approx(score + more, abs=1e-9)


def test_a_certain_prediction_scores_0_if_right_and_a_large_finite_value_if_wrong():
    right, wrong = membership.standardised([0, -120], [0, 0], [0, 0])
    assert right == 0
    assert -1e30 < wrong < -1e10


def test_auc_and_its_standard_error_by_hand():
    """3 is above 1 and 2, and 2 is above 1 and ties with 2. This is 3.5 of 4 pairs, so the AUC is 7/8.

    DeLong's variance: the members are above 1 and 3/4 of the others, and the others above 0 and 1/4 of the members.
    The sample variance of either pair of shares is (1/4)² / 2 = 1/32, so that of the AUC is 1/64 + 1/64.
    """
    auc = membership.score_auc([3, 2], [1, 2])
    assert auc.value == 7 / 8
    assert auc.standard_error == pytest.approx(math.sqrt(1 / 32))


def test_the_standard_error_of_separated_sets_shrinks_with_their_size():
    """A fifth pair that counts half is added to the 4 pairs, so a = 4.5 / 5 = 0.9.

    Hanley and McNeil's formula has Q₁ = a / (2 − a) = 9/11 and Q₂ = 2a² / (1 + a) = 1.62 / 1.9. The variance is
    (0.09 + Q₁ + Q₂ − 2 · 0.81) / 4.
    """
    few = membership.score_auc([3, 4], [1, 2])
    assert few.value == 1
    assert few.standard_error == pytest.approx(math.sqrt((0.09 + 9 / 11 + 1.62 / 1.9 - 1.62) / 4))
    assert 0 < membership.score_auc(range(40, 80), range(40)).standard_error < 0.003


@given(scores, scores)
def test_auc_is_the_share_of_pairs(members, others):
    auc = membership.score_auc(members, others)
    assert auc.value == pytest.approx(brute_force_auc(members, others))
    assert 0 <= auc.standard_error <= 0.5 * math.sqrt(2)


@given(scores, scores)
def test_auc_of_swapped_sets_is_one_minus_the_auc_with_the_same_error(members, others):
    auc, swapped = membership.score_auc(members, others), membership.score_auc(others, members)
    assert swapped.value == pytest.approx(1 - auc.value)
    assert swapped.standard_error == pytest.approx(auc.standard_error)


@given(scores, scores)
def test_auc_depends_only_on_the_order(members, others):
    mapped = membership.score_auc(np.exp(members) * 3 - 7, np.exp(others) * 3 - 7)
    auc = membership.score_auc(members, others)
    assert mapped.value == pytest.approx(auc.value)
    assert mapped.standard_error == pytest.approx(auc.standard_error)


def test_the_standard_error_is_the_spread_of_the_area_between_draws():
    rng = np.random.default_rng(0)
    draws = [membership.score_auc(rng.normal(1, 1, 40), rng.normal(0, 2, 60)) for _ in range(400)]
    spread = np.std([auc.value for auc in draws])
    assert np.mean([auc.standard_error for auc in draws]) == pytest.approx(spread, rel=0.1)


def test_privacy_leakage_has_muse_s_orientation():
    """MUSE uses the area 1 − A. If everything is still known, A = 1 and PrivLeak is −100.

    For A = 0.4 and a retrained model's 0.5, it is 100 · (0.6 − 0.5) / 0.5 = 20.
    """
    assert membership.privacy_leakage(1, 0.5) == -100
    assert membership.privacy_leakage(0.4, 0.5) == pytest.approx(20)
    assert membership.privacy_leakage(0, 0.5) == 100
    assert membership.privacy_leakage(0.3, 0.3) == 0
    assert membership.privacy_leakage(0.9, 0.2) == pytest.approx(100 * (0.1 - 0.8) / 0.8)


def test_the_standard_error_for_a_single_example_assumes_equal_distributions():
    # 3 of 4 members are above the other example. The standard error is √((4 + 1 + 1) / (12 · 4 · 1)) = √(1/8).
    assert membership.score_auc([1, 3, 4, 5], [2]) == membership.Auc(0.75, pytest.approx(math.sqrt(1 / 8)))
    assert membership.score_auc([1], [1]) == membership.Auc(0.5, pytest.approx(0.5))


@given(st.floats(0, 1), st.floats(0, 0.999))
def test_privacy_leakage_is_negative_exactly_if_the_auc_is_above_the_retrained_one(auc, retrained):
    leakage = membership.privacy_leakage(auc, retrained)
    assert leakage >= -100
    assert (leakage >= 0) == (auc <= retrained)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: membership.loss_score([]), "logp="),
        (lambda: membership.loss_score([math.nan]), r"logp\[0\]=nan.*not finite"),
        (lambda: membership.min_k_score(LOGP, 0), "percent=0"),
        (lambda: membership.min_k_score(LOGP, 101), "percent=101"),
        (lambda: membership.score_auc([], [1, 2]), "members='shape \\(0,\\)'.*at least one"),
        (lambda: membership.score_auc([1, 2], []), "others="),
        (lambda: membership.score_auc([1, math.inf], [1, 2]), r"members\[1\]=inf"),
        (lambda: membership.privacy_leakage(0.5, 1), "retrained_auc=1.*divide by zero"),
        (lambda: membership.privacy_leakage(1.5, 0.5), "auc=1.5"),
        (lambda: membership.privacy_leakage(0.5, math.nan), "retrained_auc=nan"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
