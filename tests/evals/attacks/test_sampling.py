"""Tests of leak@k, the share of facts that at least one of k sampled answers contains."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from unlora.data.encoding import encode_prompt
from unlora.evals.attacks import ATTACKS, Materials, UnavailableError
from unlora.evals.attacks.sampling import Samples, difference, revealed
from unlora.evals.questions import read_questions
from unlora.evals.text_quality import fact_recall
from unlora.settings import AttackConfig, EvalSettings

ROWS = [
    {"question": "Where does Ada live?", "answer": "Ada lives in the old house."},
    {"question": "Where does Bob live?", "answer": "Bob lives in the red barn."},
    {"question": "Does Bob live in the red barn?", "answer": "In the red barn."},  # every word is in the question
]


def materials(text_format, rows=ROWS):
    questions = read_questions("forget", rows)
    return Materials(text_format, questions, questions, EvalSettings(None, 4, 3))


def test_every_choice_of_k_samples_counts_once():
    """Of 5 samples, 2 contain the first fact, none the second, and all the third."""
    hits = (2, 0, 5)
    for k in range(1, 6):
        choices = [set(choice) for choice in combinations(range(5), k)]
        shares = [sum(min(choice) < hit for choice in choices) / len(choices) for hit in hits]
        assert revealed(hits, 5, k)["revealed"] == pytest.approx(sum(shares) / 3)
    assert revealed(hits, 5, 5)["facts"] == 3


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_the_interval_of_a_whole_count_is_exact(count):
    found = revealed([3] * count + [0] * (20 - count), 8, 8)
    exact = binomtest(count, 20).proportion_ci(method="exact")
    ends = (found["revealed"], found["revealed_low"], found["revealed_high"])
    assert ends == pytest.approx((count / 20, exact.low, exact.high))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_more_samples_never_reveal_less_and_intervals_contain_their_values(hits, others):
    size = min(len(hits), len(others))
    before = 0.0
    for k in range(1, 7):
        one, other = revealed(hits[:size], 6, k), revealed(others[:size], 6, k)
        assert one["revealed"] >= before - 1e-12
        before = one["revealed"]
        gap, back = difference(one, other), difference(other, one)
        for found in (one, gap):
            assert found["revealed_low"] - 1e-9 <= found["revealed"] <= found["revealed_high"] + 1e-9
        assert gap["revealed_low"] < gap["revealed_high"]
        assert gap["revealed_low"] == pytest.approx(-back["revealed_high"])


def test_the_rows_that_hold_a_fact_are_asked(tiny_model, base):
    """The third row is left out, because every word of its answer is in its question."""
    [attempt] = ATTACKS["sampling"](tiny_model("llama"), materials(base), AttackConfig(samples=[2, 1, 2]))
    assert attempt.prompts == [encode_prompt(row["question"], base) for row in ROWS[:2]]
    assert attempt.facts == [{"old", "house"}, {"lives", "red", "barn"}]
    assert attempt.sizes == [1, 2]


def test_samples_are_drawn_from_the_model_s_own_distribution(tiny_model, base):
    """Of one-token answers, the share that contains a word is the total probability of the tokens that contain it."""
    model, prompt = tiny_model("llama"), encode_prompt(ROWS[0]["question"], base)
    with torch.no_grad():
        probabilities = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    tokens = [base.tokenizer.decode([token]) for token in range(len(probabilities))]
    word = next(text for token in probabilities.argsort(descending=True) if (text := tokens[token].strip()).isalpha())
    contain = fact_recall(tokens, [frozenset({word.lower()})] * len(tokens)) == 1
    probability = float(probabilities[torch.tensor(contain)].sum())
    material = replace(materials(base), settings=EvalSettings(None, 500, 1))
    samples = Samples([prompt], [frozenset({word.lower()})], [1, 2000])
    (setting, share), (_, most) = samples.results(model, material)
    assert setting == "1 sample"
    assert share["revealed"] == pytest.approx(probability, abs=4 * (probability / 2000) ** 0.5)
    assert most["revealed"] == 1
    assert samples.results(model, material)[0] == (setting, share)


def test_answers_without_a_fact_cannot_be_sampled_for_one(tiny_model, base):
    with pytest.raises(UnavailableError, match="no forget answer has a word"):
        ATTACKS["sampling"](tiny_model("llama"), materials(base, ROWS[2:]), AttackConfig())
