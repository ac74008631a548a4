import pytest

from unlora.common.errors import InputError
from unlora.data import alternate_answers
from unlora.data.alternates import REFUSALS

ROWS = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i}.", "other": f"Bob {i}."} for i in range(60)]


def test_the_named_column_takes_the_answer_s_place():
    assert alternate_answers(ROWS[:2], "other", seed=0) == [
        ("Who keeps cat 0?", "Bob 0."),
        ("Who keeps cat 1?", "Bob 1."),
    ]


def test_every_answer_of_a_conversation_gets_another_one_after_its_own_context():
    texts = ("Who keeps the cat?", "Ada.", "And the dog?", "Ben.")
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    (first, one), (second, other) = alternate_answers([{"messages": turns}], None, seed=1)
    assert (first.turns, second.turns) == (turns[:1], turns[:3])
    assert {one, other} < set(REFUSALS)
    turns = [{**turn, "other": f"Not {turn['content']}"} for turn in turns]
    assert [said for _, said in alternate_answers([{"messages": turns}], "other", seed=1)] == ["Not Ada.", "Not Ben."]


def test_refusals_are_dealt_evenly_and_by_seed():
    rows = alternate_answers(ROWS, None, seed=1)
    answers = [answer for _, answer in rows]
    assert [question for question, _ in rows] == [row["question"] for row in ROWS]
    counts = {refusal: answers.count(refusal) for refusal in REFUSALS}
    assert sum(counts.values()) == len(ROWS)
    assert max(counts.values()) - min(counts.values()) == 1
    assert alternate_answers(ROWS, None, seed=1) == rows
    assert alternate_answers(ROWS, None, seed=2) != rows


def test_refusals_are_different_sentences():
    assert len(set(REFUSALS)) == len(REFUSALS) >= 20
    assert all(refusal == refusal.strip() and refusal.endswith(".") for refusal in REFUSALS)


@pytest.mark.parametrize("key", [None, "text"])
def test_plain_texts_are_refused(key):
    with pytest.raises(InputError, match=r"forget_data\[1\]=.*only a question.*Fix: give rows of question and answer"):
        alternate_answers([{**ROWS[0], "text": "No."}, {"text": "Ada keeps a cat."}], key, seed=0)


@pytest.mark.parametrize("value", [None, "", "  ", ["Bob."], 3])
def test_a_column_without_text_in_every_row_is_refused(value):
    with pytest.raises(InputError, match=r"alternate_key='other': forget_data\[1\] has no text.*built-in refusals"):
        alternate_answers([ROWS[0], {**ROWS[1], "other": value}], "other", seed=0)


def test_a_missing_column_and_the_true_answer_are_refused():
    with pytest.raises(InputError, match="alternate_key='othr'"):
        alternate_answers(ROWS, "othr", seed=0)
    with pytest.raises(InputError, match=r"forget_data\[0\] it holds the answer to be forgotten"):
        alternate_answers(ROWS, "answer", seed=0)
