"""Tests of the ranking with values computed by hand."""

import pytest

from unlora.evals.ranking import ranking

ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
OWN = {
    "extraction_strength": 0.5,
    "exact_memorization": 0.5,
    "forget_Q_A_PARA_Prob": 0.75,
    "forget_truth_ratio_prob_mean": 0.75,
    "model_utility": 0.3,
    "forget_Q_A_gibberish": 0.9,
    **dict.fromkeys(ATTACKS, 0.6),
}


def test_each_part_is_a_harmonic_mean_and_so_is_the_whole():
    """Memorisation is the harmonic mean of 1/2, 1/2, 1/4 and 1/4, which is 4/12.

    Privacy is 1 − 0.2 / 0.6 for each attack, because the AUCs are 0.6 and 0.4. Utility is the harmonic mean of 1/2 and
    1, because relative fluency counts at most 1.
    """
    found = ranking(OWN, {"model_utility": 0.6, "forget_Q_A_gibberish": 0.8}, dict.fromkeys(ATTACKS, 0.4))
    parts = {"memorisation": 1 / 3, "privacy": 2 / 3, "utility": 2 / 3}
    assert found == pytest.approx({**parts, "overall": 3 / (3 + 3 / 2 + 3 / 2)})


def test_privacy_is_1_for_the_retrained_model_and_0_for_the_farthest_auc():
    reference = dict.fromkeys(ATTACKS, 0.4)
    assert ranking(reference, None, reference)["privacy"] == 1
    assert ranking(dict.fromkeys(ATTACKS, 1.0), None, reference)["privacy"] == 0


@pytest.mark.parametrize("fluency", ["forget_Q_A_gibberish", "whole_answers"])
def test_fluency_is_the_classifier_s_or_the_share_of_whole_answers(fluency):
    own, original = ({"model_utility": utility, fluency: 0.5} for utility in (0.3, 0.6))
    assert ranking(own, original, None)["utility"] == pytest.approx(2 / 3)


def test_numbers_that_need_missing_values_are_none():
    assert ranking(OWN, None, None) == {"memorisation": 1 / 3, "privacy": None, "utility": None, "overall": None}
    mixed = {"model_utility": 0.6, "whole_answers": 0.8}  # its fluency is measured differently than in OWN
    assert ranking(OWN, mixed, None)["utility"] is None
