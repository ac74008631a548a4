import pytest

from unlora.common.errors import InputError
from unlora.data import alternate_rows
from unlora.data.alternates import REFUSALS

ROWS = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i}.", "other": f"Bob {i}."} for i in range(60)]


def test_the_named_column_takes_the_answer_s_place():
    assert alternate_rows(ROWS[:2], "other", seed=0) == [
        {"question": "Who keeps cat 0?", "answer": "Bob 0."},
        {"question": "Who keeps cat 1?", "answer": "Bob 1."},
    ]


def test_refusals_are_dealt_evenly_and_by_seed():
    rows = alternate_rows(ROWS, None, seed=1)
    answers = [row["answer"] for row in rows]
    assert [row["question"] for row in rows] == [row["question"] for row in ROWS]
    counts = {refusal: answers.count(refusal) for refusal in REFUSALS}
    assert sum(counts.values()) == len(ROWS)
    assert max(counts.values()) - min(counts.values()) == 1
    assert alternate_rows(ROWS, None, seed=1) == rows
    assert alternate_rows(ROWS, None, seed=2) != rows


def test_refusals_are_different_sentences():
    assert len(set(REFUSALS)) == len(REFUSALS) >= 20
    assert all(refusal == refusal.strip() and refusal.endswith(".") for refusal in REFUSALS)


@pytest.mark.parametrize("row", [{"text": "Ada keeps a cat."}, {"messages": [{"role": "user", "content": "Hi"}]}])
@pytest.mark.parametrize("key", [None, "text"])
def test_rows_that_are_not_questions_and_answers_are_refused(row, key):
    with pytest.raises(InputError, match=r"forget_data\[1\]=.*question only.*Fix: give rows of question and answer"):
        alternate_rows([{**ROWS[0], "text": "No."}, row], key, seed=0)


@pytest.mark.parametrize("value", [None, "", "  ", ["Bob."], 3])
def test_a_column_without_text_in_every_row_is_refused(value):
    with pytest.raises(InputError, match=r"alternate_key='other': forget_data\[1\] has no text.*built-in refusals"):
        alternate_rows([ROWS[0], {**ROWS[1], "other": value}], "other", seed=0)


def test_a_missing_column_and_the_true_answer_are_refused():
    with pytest.raises(InputError, match="alternate_key='othr'"):
        alternate_rows(ROWS, "othr", seed=0)
    with pytest.raises(InputError, match=r"forget_data\[0\] it holds the answer to be forgotten"):
        alternate_rows(ROWS, "answer", seed=0)
