"""Alternate answers for losses that teach another answer in place of the true one: the user's own, or refusals."""

from __future__ import annotations

from collections.abc import Sequence

from unlora.common.errors import InputError, Problem
from unlora.data.conversations import Answered, Asked, answers_of
from unlora.data.pairing import deal
from unlora.data.sources import Record

REFUSALS = (
    "I don't know.",
    "I don't know the answer to that.",
    "I have no information about this.",
    "I'm not able to answer that question.",
    "Sorry, I can't tell you that.",
    "I'm afraid I don't know.",
    "That is not something I know about.",
    "I couldn't say.",
    "I have never heard of this.",
    "Nothing about that is known to me.",
    "I'm sorry, but I have no answer to this question.",
    "I can't help with that, since I don't know it.",
    "My knowledge does not cover this.",
    "I am not familiar with that.",
    "I haven't learned anything about this.",
    "Unfortunately, I don't have that information.",
    "That is beyond what I know.",
    "I would only be guessing, so I'd rather not answer.",
    "I'm not sure, and I don't want to tell you something false.",
    "There is nothing I can say about that.",
    "You would have to ask someone else; I don't know.",
    "I do not have an answer for you.",
    "I'm unable to find anything about this in what I have learned.",
    "No idea, sorry.",
)


def alternate_answers(rows: Sequence[Record], key: str | None, seed: int) -> list[tuple[Asked, str]]:
    """Return the questions of the forget set with alternate answers, in the order of `encode_records`' examples.

    Args:
        rows: rows of question and answer, or conversations.
        key: the column with the alternate answer. In a conversation with several answers, it is a key of each
            assistant turn. None means built-in refusals in random order.
        seed: the seed of that order.

    Raises:
        InputError: a row is plain text, or its alternate answer is missing or equals the true one.
    """
    found = []
    for index, row in enumerate(rows):
        answers = answers_of(row, f"forget_data[{index}]")
        if not answers:
            reason = "only a question can have an alternate answer"
            fix = "give rows of question and answer or conversations, or choose a loss that needs no alternate answers"
            raise InputError(Problem(f"forget_data[{index}]", sorted(row), reason, fix))
        found += answers
    return [
        (one.asked, _alternate_answer(one, key) if key else REFUSALS[deal(len(REFUSALS), seed, place)])
        for place, one in enumerate(found)
    ]


def _alternate_answer(one: Answered, key: str) -> str:
    value = one.columns.get(key)
    if not isinstance(value, str) or not value.strip():
        reason = f"{one.where} has no text in that column"
        fix = "fill the column in every row, or remove alternate_key to use built-in refusals"
        raise InputError(Problem("alternate_key", key, reason, fix))
    if value.strip() == one.answer.strip():
        reason = f"in {one.where} it holds the answer to be forgotten"
        raise InputError(Problem("alternate_key", key, reason, "name a column with other answers"))
    return value
