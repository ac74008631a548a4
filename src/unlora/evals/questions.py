"""Convert the rows of a set to the questions of an evaluation and the answers that are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from unlora.common.errors import InputError, Problem

if TYPE_CHECKING:
    from unlora.data import Asked
    from unlora.data.conversations import Answered
    from unlora.data.sources import Record

# Optional columns with answers. A set has such a column in all rows or in none.
_OTHER_ANSWERS = ("paraphrased_answer", "perturbed_answer")


class Question(NamedTuple):
    """A question, and the answers that are scored.

    Args:
        question: the text, or the turns of a conversation before an answer of the assistant.
        answer: the right answer.
        paraphrased: the right answer in other words, or `answer` if the set has no paraphrases.
        perturbed: wrong answers.
        paraphrased_question: the question in other words, if the set has it.
        where: the name of the row in error messages.
    """

    question: Asked
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]
    paraphrased_question: str | None
    where: str

    def texts(self) -> tuple[str, ...]:
        """Return the answers to score."""
        return (self.answer, self.paraphrased, *self.perturbed)


def read_questions(name: str, rows: Sequence[Record], limit: int | None = None) -> list[Question]:
    """Return the questions in the rows of the set `name`, at most `limit`. Rows of plain text are skipped.

    Raises:
        InputError: a row lacks a text, has other columns than the first row, or another number of wrong answers.
    """
    answers = list(islice(_answers(name, rows), limit))
    if rows and not answers:
        fix = "give rows of question and answer, or conversations"
        raise InputError(Problem(name, f"{len(rows)} rows", "plain text has no questions", fix))
    questions = [_question(answer, answers[0]) for answer in answers]
    for question in questions:
        if len(question.perturbed) != (count := len(questions[0].perturbed)):
            reason = f"row 0 has {count} wrong answers, this row {len(question.perturbed)}"
            fix = "give all rows of a set the same number of wrong answers"
            raise InputError(Problem(f"{question.where}.perturbed_answer", list(question.perturbed), reason, fix))
    return questions


def _answers(name: str, rows: Sequence[Record]) -> Iterator[Answered]:
    from unlora.data.conversations import Answered, answers_of
    from unlora.data.sources import is_text

    for index, row in enumerate(rows):
        where = f"{name}[{index}]"
        if not is_text(row):
            # A row without an answer is passed on as empty, so that `_question` reports the column that it lacks.
            yield from answers_of(row, where) or [Answered("", "", row, where)]


def _question(one: Answered, first: Answered) -> Question:
    where, columns = one.where, one.columns
    found, expected = ([key for key in _OTHER_ANSWERS if part.columns.get(key) is not None] for part in (one, first))
    if found != expected:
        reason = f"row 0 has {expected or 'no other answers'}, this row {found or 'none'}"
        raise InputError(Problem(where, sorted(columns), reason, "give every row of a set the same columns"))
    for key in (*(("question", "answer") if isinstance(one.asked, str) else ()), *found):
        texts = columns.get(key) if key == "perturbed_answer" else [columns.get(key)]
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            kind = "a list of non-empty texts" if key == "perturbed_answer" else "a non-empty text"
            raise InputError(
                Problem(f"{where}.{key}", columns.get(key), f"it must be {kind}", "rename or fill the column")
            )
    paraphrased = columns["paraphrased_answer"] if "paraphrased_answer" in found else one.answer
    wrong = tuple(columns.get("perturbed_answer") or ())
    return Question(one.asked, one.answer, paraphrased, wrong, columns.get("paraphrased_question"), where)


def as_row(question: Question) -> Record:
    """Return the texts of a question as a row."""
    asked, wrong = str(question.question), list(question.perturbed)
    return {"question": asked, "answer": question.answer, "perturbed_answer": wrong}
