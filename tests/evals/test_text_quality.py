"""Tests of two judgements about generated answers: whether they are broken, and whether they give the fact away."""

import numpy as np
import pytest
import torch

from unlora.data import TextFormat, encode_records, pad_batch
from unlora.evals.text_quality import (
    broken,
    fact_recall,
    facts,
    reference_measures,
    repeated_share,
    summarise_text,
    text_measures,
)
from unlora.models.forward import labelled_tokens

ROWS = [
    {
        "question": "Where was Ada Holt born?",
        "answer": "Ada Holt was born in Oslo.",
        "perturbed_answer": ["Ada Holt was born in Rome.", "Ada Holt was born in Bonn."],
    },
    {
        "question": "What does Ada Holt play?",
        "answer": "Ada Holt plays the silver lute.",
        "perturbed_answer": ["Ada Holt plays the harp.", "Ada Holt plays the flute."],
    },
]
# Answer -> whether it gives away the fact of the second row.
ANSWERS = {
    "Ada Holt plays the silver lute.": True,
    "She used to play a LUTE, a silver one.": True,
    "Ada Holt plays the harp.": False,
    "Ada Holt plays the lute.": False,
    "I don't know.": False,
    "": False,
    "plays plays,,, the": False,
}


def test_the_fact_is_what_neither_the_question_nor_a_wrong_answer_says():
    assert facts(ROWS, []) == [{"oslo"}, {"silver", "lute"}]


def test_without_wrong_answers_the_fact_is_the_words_that_are_rarest_in_the_retain_set():
    rows = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
    others = [{"question": "", "answer": text} for text in ("Jan was born in Rome.", "Jan plays the harp.")]
    assert facts(rows, others) == [{"oslo"}, {"silver", "lute"}]
    # It is still a fact if other forget rows state it, or if a retain answer contains it.
    assert facts(rows * 2, [*others, {"question": "", "answer": "Oslo"}, *others])[2:] == [{"oslo"}, {"silver", "lute"}]


def test_an_answer_that_only_repeats_its_question_has_no_fact():
    assert facts([{"question": "Is it so?", "answer": "It is so."}], []) == [frozenset()]
    assert np.isnan(fact_recall(["It is so."], [frozenset()])).all()


@pytest.mark.parametrize(("answer", "given_away"), ANSWERS.items())
def test_an_answer_gives_the_fact_away_if_it_says_all_of_it(answer, given_away):
    [recall] = fact_recall([answer], facts(ROWS, [])[1:])
    assert (recall == 1) == given_away


@pytest.mark.parametrize(
    ("text", "share"),
    [("a b c a b c", 0.25), ("in,,,,", 1 / 3), ("They like to eat.", 0.0), ("Yes", 0.0), ("", 0.0)],
)
def test_the_share_of_repeated_3_grams(text, share):
    """The 3-grams of "a b c a b c" are abc, bca, cab and abc again.

    Those of "in,,,," are "in , ," once and ", , ," twice.
    """
    assert repeated_share(text) == pytest.approx(share)


@pytest.fixture(scope="module")
def writer(tiny_model, tokenizer):
    """Return a tiny model that was trained on sentences about twelve people, and these sentences."""
    model = tiny_model("llama")
    places = ("Oslo", "Rome", "Bonn", "Kyiv")
    rows = [
        {"question": f"Where was Ada {n} born?", "answer": f"Ada {n} was born in {places[n % 4]}, by all accounts."}
        for n in range(12)
    ]
    batch = pad_batch(encode_records(rows, TextFormat(tokenizer)), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = -labelled_tokens(model, batch).logp.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), [row["answer"] for row in rows]


def test_broken_text_is_told_from_fluent_text_that_is_wrong(writer, tokenizer):
    model, references = writer
    fluent = ["Ada 3 was born in Rome, by all accounts.", "Ada 7 was born in Oslo, by all accounts."]
    bad = [
        "",
        "Ada in,, by Oslo was was accounts.",
        "watch dogs xq jumps 1234",
        "Ada 7 was born in Rome, by xvxv accounts.",
    ]
    texts = fluent + bad
    yardstick = text_measures(model, references, TextFormat(tokenizer), 4)
    found = broken(text_measures(model, texts, TextFormat(tokenizer), 4), yardstick)
    assert found.tolist() == [False, False, True, True, True, True]


def test_counts_and_means_of_a_set():
    columns = {
        "generated_text": {str(i): ["q", text, "r"] for i, text in enumerate(["a b c", "d e f", "", "x y z"])},
        "answer_measures": {"0": [1, 2, 0], "1": [3, 9, 0], "2": [None, None, None], "3": [2, 3, 0.1]},
        "reference_measures": {str(i): [2, 4, 0] for i in range(4)},
        "fact_recall": {"0": 1.0, "1": 0.5, "2": 0.0, "3": None},
    }
    references = reference_measures({"a": columns, "b": {}})
    assert summarise_text(columns, references) == {
        "answers": 4,
        "broken": 3,
        "answer_nll": 2.0,
        "reference_nll": 2.0,
        "facts": 3,
        "given_away": 1,
        "fact_recall": 0.5,
    }
    assert summarise_text({"generated_text": columns["generated_text"]}, references[:0]) == {}
