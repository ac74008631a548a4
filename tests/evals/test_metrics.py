import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlora.common.errors import InputError
from unlora.evals import metrics
from unlora.evals.log_format import TASKS
from unlora.evals.logs import read_log
from unlora.evals.membership.scores import score_auc

losses = st.floats(0, 500)
ratios = st.lists(st.floats(0, 1e300), min_size=1, max_size=30)
terms = st.lists(st.floats(1e-6, 1), min_size=1, max_size=9)
wrong_losses = st.lists(losses, min_size=1, max_size=8)
shifts = st.floats(-100, 100)
# A small vocabulary, so that texts share words. Stemming does not change any of them.
texts = st.lists(st.sampled_from(["cat", "dog", "fox", "hen"]), min_size=1, max_size=9).map(" ".join)


def longest_common_subsequence(one, other):
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = lengths[:]
        for place, match in enumerate(other, 1):
            lengths[place] = before[place - 1] + 1 if word == match else max(before[place], lengths[place - 1])
    return lengths[-1]


def test_answer_probability_by_hand():
    """exp(−ln 2) = 1/2 and exp(−0) = 1."""
    assert metrics.answer_probability([math.log(2), 0]) == pytest.approx([0.5, 1])


def test_normalised_probability_by_hand_with_different_numbers_of_wrong_answers():
    """P = 1/2 with wrong answers of 1/4 and 1/4: 0.5 / (0.5 + 0.5) = 1/2. P = 1/4 with one of 3/4: 0.25 / 1 = 1/4."""
    right = [math.log(2), math.log(4)]
    wrong = [[math.log(4), math.log(4)], [math.log(4 / 3)]]
    assert metrics.normalised_probability(right, wrong) == pytest.approx([0.5, 0.25])
    assert metrics.normalised_nll(right, wrong) == pytest.approx([math.log(2), math.log(4)])


def test_normalised_probability_where_every_probability_rounds_to_zero():
    """Losses of 2000 and 2000 + ln 3 give 1 / (1 + 1/3) = 3/4, although exp(−2000) underflows to 0."""
    assert metrics.normalised_probability([2000], [[2000 + math.log(3)]]) == pytest.approx([0.75])
    assert metrics.normalised_nll([2000], [[0]]) == pytest.approx([2000])


def test_both_truth_ratios_by_hand():
    """The perturbed answers have probabilities 1/2 and 1/8, the paraphrased answer 1/4.

    The arithmetic mean is (1/2 + 1/8) / 2 = 5/16, and 5/16 over 1/4 is 5/4. The geometric mean is sqrt(1/16) = 1/4, and
    1/4 over 1/4 is 1.
    """
    right, wrong = [math.log(4)], [[math.log(2), math.log(8)]]
    assert metrics.truth_ratio(right, wrong) == pytest.approx([1.25])
    assert metrics.truth_ratio(right, wrong, "geometric") == pytest.approx([1])


@pytest.mark.parametrize("mean", metrics.MEANS)
def test_truth_ratio_stays_finite_where_the_truth_became_impossible(mean):
    ratio = metrics.truth_ratio([5000, 0], [[0, 1], [5000]], mean)
    assert np.isfinite(ratio).all()
    assert ratio[1] == 0
    assert metrics.forget_truth_scores(ratio).max() < 1e-300
    assert metrics.retain_truth_scores(ratio).tolist() == [0, 1]


def test_truth_scores_by_hand():
    """For R = 1/4, 1 and 4, the retain scores are max(0, 1 − R) and the forget scores min(R, 1/R)."""
    assert metrics.retain_truth_scores([0.25, 1, 4]).tolist() == [0.75, 0, 0]
    assert metrics.forget_truth_scores([0.25, 1, 4]).tolist() == [0.25, 1, 0.25]


def test_model_utility_by_hand():
    """The harmonic mean of 1, 1/2 and 1/4 is 3 / (1 + 2 + 4) = 3/7. With a term of 0 it is 0."""
    assert metrics.model_utility([1, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert metrics.model_utility([1, 0, 1]) == 0


def test_membership_auc_by_hand():
    """Of the pairs (1, 2), (1, 3), (3, 2) and (3, 3), the member is lower in two and one is a tie: 2.5 / 4."""
    assert metrics.membership_auc([1, 3], [2, 3]) == 0.625
    assert metrics.membership_auc([1, 2], [3, 4, 5]) == 1
    assert metrics.membership_auc([3, 4, 5], [1, 2]) == 0


@given(st.lists(losses, min_size=2, max_size=30), st.lists(losses, min_size=2, max_size=30))
def test_membership_auc_is_the_share_of_pairs(members, others):
    ties = [[math.isclose(one, other, rel_tol=1e-5) for other in others] for one in members]
    pairs = [
        tie / 2 if tie else float(one < other)
        for one, row in zip(members, ties, strict=True)
        for other, tie in zip(others, row, strict=True)
    ]
    assert metrics.membership_auc(members, others) == pytest.approx(sum(pairs) / len(pairs))


# Multiples of 0.001, so that distinct values differ by more than the noise.
grid = st.lists(st.integers(-9999, 9999).map(lambda value: value / 1000), min_size=2, max_size=30)


@given(grid, grid, st.integers(0, 2**32 - 1))
def test_noise_in_the_last_bits_of_float32_changes_no_rank_statistic(one, other, seed):
    """Values that were equal stay ties, for example the losses of the same text in several rows of a batch."""
    drawn = np.random.default_rng(seed)
    noisy = [
        np.float32(values) * (1 + drawn.integers(-8, 9, len(values)) * np.finfo(np.float32).eps)
        for values in (one, other)
    ]
    assert metrics.membership_auc(*noisy) == metrics.membership_auc(one, other)
    assert metrics.ks_pvalue(*noisy) == metrics.ks_pvalue(one, other)
    assert score_auc(*noisy) == score_auc(one, other)


def test_values_that_differ_by_more_than_noise_are_not_ties():
    assert metrics.membership_auc([1.0, 1.0], [1.0001, 1.0001]) == 1
    assert metrics.membership_auc([1.0, 1.0], [1.000001, 1.000001]) == 0.5
    # The tolerance is relative, so tiny ratios with different digits are not ties.
    assert metrics.membership_auc([1e-30, 2e-30], [1e-29, 2e-29]) == 1


def test_forget_quality_by_hand():
    """The samples {1, 2, 3} and {4, 5, 6} do not overlap. 2 of the C(6, 3) = 20 orders are as extreme, so p = 1/10."""
    assert metrics.forget_quality([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)


def test_a_p_value_of_zero_has_a_logarithm():
    quality = metrics.forget_quality(np.arange(20000), np.arange(20000) + 1e6)
    assert quality == sys.float_info.min * sys.float_info.epsilon
    assert math.isfinite(math.log10(quality))


def test_rouge_recall_by_hand():
    """'The cat was running!' shares the, cat(s) and run(ning) with the 5 words of the reference: 3/5.

    In 'running the cat', these words are in another order. The longest common subsequence is 'the cat', so ROUGE-L is
    2/5, while ROUGE-1 stays 3/5.
    """
    reference = "the cats were running home"
    assert metrics.rouge_l_recall("The cat was running!", reference) == pytest.approx(3 / 5)
    assert metrics.rouge_recalls("running the cat", reference) == pytest.approx({"rouge1": 3 / 5, "rougeL": 2 / 5})
    assert metrics.rouge_l_recall("", reference) == 0


def test_answers_without_words_are_counted(caplog):
    metrics.warn_of_wordless("forget set", ["In Bonn.", "日本", "Москва.", "?!", "1994"])
    assert "forget set: 3 of 5 right answers have neither Latin letters nor digits" in caplog.text
    assert metrics.rouge_l_recall("日本", "日本") == 0
    caplog.clear()
    metrics.warn_of_wordless("forget set", ["In Bonn.", "1994", "Ж2"])
    assert not caplog.text


@given(st.text())
def test_a_text_recalls_itself_exactly_if_it_has_words(text):
    known = metrics.WORD.search(text.lower()) is not None
    assert metrics.rouge_l_recall(text, text) == known


@given(losses, losses)
def test_a_larger_loss_is_a_smaller_probability(one, other):
    small, large = metrics.answer_probability(sorted((one, other)))
    assert 0 <= large <= small <= 1


@given(losses, wrong_losses, losses)
def test_another_wrong_answer_lowers_the_normalised_probability(right, wrong, further):
    before, after = (metrics.normalised_probability([right], [others])[0] for others in (wrong, [*wrong, further]))
    assert 0 <= after <= before <= 1


@given(losses, st.integers(1, 8))
def test_equally_likely_answers_share_the_probability(loss, count):
    assert metrics.normalised_probability([loss], [[loss] * count])[0] == pytest.approx(1 / (count + 1))


@given(losses, wrong_losses, shifts, st.sampled_from(metrics.MEANS))
def test_ratios_depend_only_on_differences_of_losses(right, wrong, shift, mean):
    moved = [loss + shift for loss in reversed(wrong)]
    ratio, other = (
        metrics.truth_ratio([own], [all_], mean)[0] for own, all_ in ((right, wrong), (right + shift, moved))
    )
    assert other == pytest.approx(ratio, rel=1e-6)
    share, other = (
        metrics.normalised_probability([own], [all_])[0] for own, all_ in ((right, wrong), (right + shift, moved))
    )
    assert other == pytest.approx(share, rel=1e-6, abs=1e-300)


@given(ratios, st.floats(1, 100))
def test_retain_truth_scores_fall_as_wrong_answers_become_more_likely(values, factor):
    changed = metrics.retain_truth_scores([value * factor for value in values])
    assert (np.asarray(changed) <= np.asarray(metrics.retain_truth_scores(values))).all()


@given(texts, texts)
def test_rouge_l_is_computed_from_the_longest_common_subsequence(generated, reference):
    ours, theirs = generated.split(), reference.split()
    length = longest_common_subsequence(ours, theirs)
    assert metrics.rouge_l_recall(generated, reference) == pytest.approx(length / len(theirs))
    assert metrics.rouge_l_f1(generated, reference) == pytest.approx(2 * length / (len(ours) + len(theirs)))


@given(st.text(), st.text(), st.text())
def test_rouge_of_any_texts(generated, further, reference):
    recalls = metrics.rouge_recalls(generated, reference)
    assert 0 <= recalls["rougeL"] <= recalls["rouge1"] <= 1
    assert metrics.rouge_l_recall(f"{generated} {further}", reference) >= recalls["rougeL"]
    score = metrics.rouge_l_f1(generated, reference)
    assert 0 <= score <= 1
    assert metrics.rouge_l_f1(reference, generated) == pytest.approx(score)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=20), st.lists(st.integers(-50, 50), min_size=1, max_size=20))
def test_the_kolmogorov_smirnov_test_depends_only_on_the_order(one, other):
    cubed = ([value**3 for value in values] for values in (one, other))
    assert metrics.ks_pvalue(*cubed) == metrics.ks_pvalue(one, other)


@given(ratios)
def test_truth_scores_lie_between_0_and_1(values):
    for scores in (metrics.forget_truth_scores(values), metrics.retain_truth_scores(values)):
        assert 0 <= scores.min() <= scores.max() <= 1


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=30))
def test_the_forget_truth_score_is_the_same_for_a_ratio_and_its_inverse(values):
    mirrored = [1 / value for value in values]
    assert metrics.forget_truth_scores(mirrored) == pytest.approx(metrics.forget_truth_scores(values))


@given(st.lists(losses, min_size=1, max_size=8), losses)
def test_the_geometric_truth_ratio_is_at_most_the_arithmetic(wrong, right):
    arithmetic, geometric = (metrics.truth_ratio([right], [wrong], mean)[0] for mean in metrics.MEANS)
    assert geometric <= arithmetic * (1 + 1e-9)


@given(terms)
def test_model_utility_lies_between_the_terms(values):
    assert min(values) * (1 - 1e-12) <= metrics.model_utility(values) <= max(values) * (1 + 1e-12)


@given(ratios, ratios)
def test_forget_quality_is_symmetric_and_1_for_equal_samples(one, other):
    assert metrics.forget_quality(one, other) == pytest.approx(metrics.forget_quality(other, one))
    assert 0 < metrics.forget_quality(one, other) <= 1
    assert metrics.forget_quality(one, one) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.answer_probability([]), r"avg_nll='shape \(0,\)'.*at least one"),
        (lambda: metrics.answer_probability([[1.0]]), r"avg_nll='shape \(1, 1\)'"),
        (lambda: metrics.answer_probability([1, math.nan]), r"avg_nll\[1\]=nan.*not finite.*diverged"),
        (lambda: metrics.normalised_probability([1, 2], [[1]]), "perturbed_avg_nll='1 examples'.*has 2 examples"),
        (lambda: metrics.normalised_probability([1], [[]]), r"perturbed_avg_nll\[0\]='shape \(0,\)'"),
        (lambda: metrics.truth_ratio([1], [[1, math.inf]]), r"perturbed_avg_nll\[0\]\[1\]=inf"),
        (lambda: metrics.truth_ratio([1], [[1]], "harmonic"), "mean='harmonic'.*arithmetic, geometric"),
        (lambda: metrics.forget_truth_scores([0.5, -1]), r"ratios\[1\]=-1.0.*negative"),
        (lambda: metrics.model_utility([]), "terms="),
        (lambda: metrics.membership_auc([], [1, 2]), "members='shape .*at least one"),
        (lambda: metrics.forget_quality([1], [math.inf]), r"retrained_ratios\[0\]=inf"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def _column(task, metric):
    return [task[metric][str(index)] for index in range(len(task[metric]))]


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["phi_full", "phi_retain90", "phi_retain99"])
def test_published_logs_are_reproduced_per_example(shared_data, name):
    log = read_log(shared_data / "tofu_logs" / f"{name}.json")
    for set_name, task_file in TASKS.items():
        task = log[task_file]
        perturbed = _column(task, "average_perturb_loss")
        ratio = metrics.truth_ratio(_column(task, "avg_paraphrased_loss"), perturbed, "geometric")
        # The published values were computed in float32.
        assert ratio == pytest.approx(_column(task, "truth_ratio"), rel=1e-5)
        for index in ("0", "7", "39"):
            _, generated, reference = task["generated_text"][index]
            assert metrics.rouge_l_recall(generated, reference) == task["rougeL_recall"][index]
        if set_name in ("real_authors", "world_facts"):
            nll = metrics.normalised_nll(_column(task, "avg_gt_loss"), perturbed)
            assert nll == pytest.approx(_column(task, "normalized_gt_loss"), rel=1e-5)
