"""The rule of docs/report.md for verdicts, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.reported import FAR, NEAR, attacks, log, logs, make_run, membership, sampled
from unlora.evals.log_format import TASKS
from unlora.report.names import p_value
from unlora.report.plots import largest_distance
from unlora.report.questions import cards
from unlora.report.read import read_run
from unlora.report.summary import smallest_distance, summarise_run
from unlora.report.tables import metrics_table
from unlora.report.verdict import verdict


def verdict_of(folder, *args, **files):
    run = read_run(make_run(folder, *args, **files))
    return verdict(run, summarise_run(run))


def test_a_model_like_the_retrained_one_gets_a_verdict_with_numbers_and_limits(tmp_path):
    found = verdict_of(tmp_path)
    assert (found.state, found.label) == ("alike", "No difference found")
    assert "On 40 forget examples, no difference was found" in found.sentence
    assert "p = 1;" in found.sentence
    assert "difference in answer probability: +0.000, 95 % interval +0.000 to +0.000" in found.sentence
    assert "100.0 % of it was kept (95 % interval 100.0 to 100.0 %)" in found.cost
    assert any("does not prove" in limit for limit in found.limits)
    assert any("distances of more than 0.30" in limit for limit in found.limits)


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.6, "are still more likely than under that model, by +0.200"),
        (0.2, "and forgetting too much leaves a trace"),
        (0.4, "one by"),
    ],
)
def test_a_model_unlike_the_retrained_one_gets_the_direction_of_the_difference(tmp_path, probability, words):
    found = verdict_of(tmp_path, logs(unlearned=log(probability, FAR * 3)))
    assert found.state == "apart"
    assert words in found.sentence


def test_equal_truth_ratios_with_likelier_answers_settle_nothing(tmp_path):
    found = verdict_of(tmp_path, logs(unlearned=log(0.6, NEAR)))
    assert (found.state, found.label) == ("mixed", "Inconclusive")
    assert "but the answers are still more likely" in found.sentence


def test_a_test_that_cannot_see_the_original_says_nothing_of_the_unlearned_model(tmp_path):
    found = verdict_of(tmp_path, logs(original=log(0.99, NEAR)))
    assert found.state == "undecided"
    assert "cannot even distinguish the original model from the retrained one" in found.sentence
    assert "fell from 0.990 to 0.400" in found.sentence


@pytest.mark.parametrize(("examples", "state"), [(1, "undecided"), (40, "apart")])
def test_a_single_example_does_not_show_a_difference_to_the_retrained_model(tmp_path, examples, state):
    """The rows have no wrong answers, so that only the probabilities of the answers can be compared."""
    evaluated = {model: log(p, NEAR[:examples]) for model, p in {"original": 0.99, "unlearned": 0.6}.items()}
    evaluated["retrained"] = log(0.4, NEAR[:examples])
    for content in evaluated.values():
        for name in ("avg_paraphrased_loss", "average_perturb_loss"):
            del content[TASKS["forget"]][name]
    found = verdict_of(tmp_path, evaluated)
    assert found.state == state
    assert ("A single forget example does not show" in found.sentence) == (state == "undecided")
    assert "+0.200" in found.sentence


@pytest.mark.parametrize("examples", [1, 40])
def test_a_single_retained_example_gives_no_interval(tmp_path, examples):
    evaluated = {model: log(0.4, NEAR) for model in ("original", "unlearned")}
    for content in evaluated.values():
        retained = content[TASKS["retain"]]
        content[TASKS["retain"]] = {name: dict(list(rows.items())[:examples]) for name, rows in retained.items()}
    run = read_run(make_run(tmp_path, evaluated))
    summary = summarise_run(run)
    found = verdict(run, summary)
    card = next(card for card in cards(run, summary, found) if card.question == "What did it cost?")
    assert "100.0 % of it was kept" in found.cost
    for text in (found.cost, card.note):
        assert ("95 % interval 100.0 to 100.0 %" in text) == (examples > 1)
    utility = metrics_table(run, summary).rows[-1][1:]
    assert [" to " in cell.note for cell in utility] == [examples > 1] * 2


def test_forgetting_that_costs_much_is_no_success(tmp_path):
    found = verdict_of(tmp_path, logs(unlearned=log(0.4, NEAR, retain=0.1)))
    assert (found.state, found.label) == ("mixed", "No difference found, but at a high cost")


@pytest.mark.parametrize(
    ("auc", "retrained", "state"),
    [(0.55, None, "alike"), (0.65, None, "apart"), (0.35, None, "apart"), (0.65, 0.6, "alike"), (0.5, 0.75, "apart")],
)
def test_without_a_retrained_log_unseen_rows_decide(tmp_path, auc, retrained, state):
    """The standard error of each AUC is 0.05, so 0.65 is three standard errors from 0.5.

    From the retrained model's 0.6, it is only 0.05 / (0.05 · √2) = 0.7 standard errors of their difference.
    """
    found = verdict_of(tmp_path, logs(retrained=None), membership=membership(auc, retrained=retrained))
    assert found.state == state
    assert f"AUC {auc:.3f} ± 0.050" in found.sentence
    assert "40 forget and 30 unseen examples" in found.sentence


@pytest.mark.parametrize(
    ("error", "original", "state"),
    [(0.14, 1.0, "undecided"), (0.12, 1.0, "alike"), (0.05, 0.65, "undecided"), (0.05, None, "undecided")],
)
def test_membership_attacks_that_would_not_see_half_of_what_the_original_gives_away_settle_nothing(
    tmp_path, error, original, state
):
    """An attack is sensitive enough if 1.96 standard errors are at most half of the original's distance from 0.5.

    Half of the distance is 0.25 for an AUC of 1.0, and 0.075 for 0.65. With the standard errors 0.14, 0.12 and 0.05,
    the smallest distances that are detected are 0.274, 0.235 and 0.098.
    """
    found = verdict_of(
        tmp_path, logs(retrained=None), membership=membership(0.7 if error > 0.1 else 0.5, error, original=original)
    )
    assert found.state == state
    assert found.label == ("Inconclusive" if state == "undecided" else "No difference found")
    known = "is not known" if original is None else "with so few examples"
    assert (known in found.sentence) == (state == "undecided")
    assert any("more than 0.235 away" in limit for limit in found.limits) == (state == "alike")


@pytest.mark.parametrize(
    ("before", "p", "state"), [(1e-6, 0.3, "alike"), (1e-6, 0.01, "apart"), (0.3, 0.3, "undecided")]
)
def test_without_other_tests_the_check_at_the_kept_step_decides(tmp_path, before, p, state):
    rows = ((0, before), (5, 0.5), (10, p), (15, 0.7))
    checks = [{"step": s, "stop_auc": 0.5, "stop_ks_pvalue": q} for s, q in rows]
    checks[-1]["stop_step"] = 10
    found = verdict_of(tmp_path, logs(retrained=None), metrics={"train": checks})
    assert found.state == state
    said = "did not distinguish the forget set from unseen rows (p = 0.3)"
    assert (said if state == "undecided" else f"KS p = {p:.2g}") in found.sentence


def test_without_anything_to_compare_with_only_the_change_is_told(tmp_path):
    found = verdict_of(tmp_path, logs(retrained=None))
    assert (found.state, found.label) == ("untested", "Not tested")
    assert "there is no telling whether the data is gone" in found.sentence
    assert "fell from 0.990 to 0.400" in found.sentence


def test_a_run_without_evaluation_says_so(tmp_path):
    found = verdict_of(tmp_path, {})
    assert found.state == "untested"
    assert "was not evaluated" in found.sentence
    assert "not known" in found.cost


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No attacks were tried"),
        (attacks(0.1), "Of 1 kind of attack, relearn (20 %) brings back the most: +0.100 ± 0.010 (standard error)"),
        (attacks(-0.1), "Of 1 kind of attack, none makes"),
        (attacks(retrained=False), "nothing to compare their success with"),
        (
            sampled(5, 3),
            "In 32 samples of each answer, the unlearned model reveals 5 of 40 facts (original model: 40; ",
        ),
        (
            sampled(5, None),
            "there is nothing to compare their success with. In 32 samples of each answer, the unlearned",
        ),
        ({"attacks": attacks(0.1)["attacks"] | sampled(5, 3)["attacks"]}, "Of 1 kind of attack, relearn"),
    ],
)
def test_the_verdict_says_what_attacks_brought_back(tmp_path, content, words):
    files = {} if content is None else {"attacks": content}
    assert words in verdict_of(tmp_path, **files).attacks


def test_a_successful_membership_attack_makes_it_inconclusive(tmp_path):
    """An AUC of 0.65 is three standard errors from 0.5. 0.55 is one standard error away."""
    found = verdict_of(tmp_path / "a", membership=membership(0.65))
    assert (found.state, found.label) == ("mixed", "Inconclusive")
    assert "But a membership attack distinguishes them from unseen rows (loss: AUC 0.650 ± 0.050" in found.sentence
    assert verdict_of(tmp_path / "b", membership=membership(0.55)).state == "alike"


def test_answers_that_an_attack_brings_back_change_the_verdict(tmp_path):
    """The difference to the retrained model is 0 without an attack, and 0.1 or 0.015 (standard error 0.01) with it."""
    found = verdict_of(tmp_path / "a", attacks=attacks(0.1))
    assert (found.state, found.label) == ("mixed", "No difference found until attacked")
    assert verdict_of(tmp_path / "b", attacks=attacks(0.015)).state == "alike"
    assert verdict_of(tmp_path / "c", attacks=attacks(retrained=False)).state == "alike"


@pytest.mark.parametrize(
    ("counts", "state"), [((10, 0), "mixed"), ((10, 9), "alike"), ((0, 10), "alike"), ((10, None), "alike")]
)
def test_sampled_facts_change_the_verdict_if_they_are_more_than_the_retrained_model_s(tmp_path, counts, state):
    """For 10 of 40 against 0 of 40, Fisher's exact test gives p = 0.0005."""
    found = verdict_of(tmp_path, attacks=sampled(*counts))
    assert (found.state, "until attacked" in found.label) == (state, state == "mixed")


@pytest.mark.parametrize(("settings", "state"), [(1, "mixed"), (20, "alike")])
def test_a_small_difference_under_the_best_of_many_attacks_is_no_success(tmp_path, settings, state):
    """0.025 is 2.5 standard errors of 0.01. The strongest of 20 attacks must exceed 3.02 of them (Bonferroni)."""
    found = attacks(0.025)
    found["attacks"]["relearn"] = {str(setting): found["attacks"]["relearn"]["20 %"] for setting in range(settings)}
    assert verdict_of(tmp_path, attacks=found).state == state


def test_an_attack_without_draws_is_as_uncertain_as_the_difference_between_the_models(tmp_path):
    """Half of the 40 examples have probability 0.6, half 0.2, and all about 0.4 under the retrained model.

    The difference is 0 with standard error 0.2 / √40 = 0.032, so its interval ends at 0.06. Under the attack, the
    interval of the same width begins at 0.1 - 0.06 = 0.04, which is not above 0.06, or at 0.3 - 0.06 = 0.24.
    """
    uneven = log(0.4, NEAR)
    losses = uneven["eval_log_forget.json"]["avg_gt_loss"]
    for index in losses:
        losses[index] = -np.log(0.6 if int(index) % 2 else 0.2)
    for gain, state in ((0.1, "alike"), (0.3, "mixed")):
        found = attacks(gain)
        del found["attacks"]["relearn"]["20 %"]["unlearned_minus_retrained"]["forget_probability_se"]
        run = verdict_of(tmp_path / str(gain), logs(unlearned=uneven), attacks=found)
        assert run.state == state


@pytest.mark.parametrize("evaluated", [logs(), logs(unlearned=log(0.6, NEAR)), logs(retrained=None), {}])
def test_the_verdict_never_claims_deletion(tmp_path, evaluated):
    found = verdict_of(tmp_path, evaluated)
    text = " ".join([found.label, found.sentence, found.cost, found.attacks]).lower()
    assert not any(word in text for word in ("deleted", "erased", "proven", "guarantee"))


def test_the_least_distance_is_where_the_test_becomes_significant():
    """Critical value at level 0.05 for two samples of 64: √(ln 40 / 2) · √(2 / 64) = 1.358 · 0.1768 = 0.240."""
    assert smallest_distance(64, 64) == pytest.approx(0.240, abs=1e-3)


def test_the_largest_distance_by_hand():
    """KS statistic: two of the first three values are at most 2, and none of the other three."""
    distance, place = largest_distance(np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0, 6.0]))
    assert (distance, place) == (pytest.approx(2 / 3), 2.0)


def test_small_p_values_are_powers_of_ten():
    assert [p_value(v) for v in (1.0, 0.0935, 9.99e-15, 5e-324)] == ["1", "0.093", "1.0 × 10⁻¹⁴", "4.9 × 10⁻³²⁴"]
