"""Rewrite the forget rows as rows about other people.

The names come from the retain set. For a person that the original does not know, it also tends to predict the answers
it learned from the forget set. For a person whose answers it knows, it does not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlora.common.errors import InputError, Problem
from unlora.data.conversations import read_turns
from unlora.data.names import Name, Vocabulary, detect_names, invent_names, replace_names
from unlora.data.sources import Record, fingerprint, has_keys, questions_of, row_text
from unlora.teachers.interface import Questions, Teaching
from unlora.teachers.people import MIN_ROWS, covering_names, vocabulary_without

# With fewer people than this in the retain set, names are invented instead. Otherwise the model could learn to take
# everybody in the forget set for the only other person.
_MIN_PEOPLE = 3


@dataclass(frozen=True)
class Substitute:
    """A forget row rewritten to be about another person.

    Args:
        row: the row with other names, or with another question if its own question names nobody.
        names: {name in this row: the name it replaces in the forget row}.
    """

    row: Record
    names: Mapping[Name, Name]


def substitutes(teaching: Teaching, count: int) -> list[list[Substitute]]:
    """Return, for each forget row, the same row about up to `count` other people.

    A row whose question names nobody gets the most similar questions of the retain set instead of its own, so that its
    answer belongs to another question.

    Raises:
        InputError: rows that name nobody and have no question. They would stay as they are, and so teach the fact.
    """
    names = teaching.forget_names
    texts, others = (list(map(row_text, rows)) for rows in (teaching.rows, teaching.retain_rows))
    known = vocabulary_without(names, others)
    people = covering_names(others, [name for name in detect_names(others, texts, MIN_ROWS) if len(name) > 1])
    if len(people) < _MIN_PEOPLE:
        people = invent_names(people, max(_MIN_PEOPLE, len(names)), teaching.seed, names)
    draw = random.Random(teaching.seed)
    found = []
    for row in teaching.rows:
        drawn = [draw.sample(people, min(count, len(people))) for _ in names]
        chosen = [dict(zip(names, one, strict=True)) for one in zip(*drawn, strict=True)] or [{}]
        found.append(_about_others(row, chosen, known, teaching.questions))
    _check_changed(teaching.rows, [options[0].row for options in found], names)
    return found


def _about_others(
    row: Record, chosen: Sequence[Mapping[Name, Name]], known: Vocabulary, questions: Questions
) -> list[Substitute]:
    """Return the row with each choice of other names, {name: other name}."""
    new_rows = [_replaced(row, others, known) for others in chosen]
    asked = questions_of([row])
    if questions.texts and questions_of(new_rows[:1]) == asked:
        alike = {question: questions.most_alike(question, len(chosen)) for question in asked}
        new_rows = [
            with_questions(new, {question: best[place % len(best)] for question, best in alike.items()})
            for place, new in enumerate(new_rows)
        ]
    back = [{other: name for name, other in others.items()} for others in chosen]
    return list(map(Substitute, new_rows, back))


def _check_changed(rows: Sequence[Record], changed: Sequence[Record], names: Sequence[Name]) -> None:
    pairs = enumerate(zip(rows, changed, strict=True))
    same = [place for place, (row, new) in pairs if fingerprint(new) == fingerprint(row)]
    if same:
        reason = f"the forget rows {', '.join(map(str, same[:5]))}{' ...' if len(same) > 5 else ''} name none of them"
        fix = "name everybody with --forget_names, or use another loss"
        raise InputError(Problem("forget_names", [" ".join(name) for name in names], reason, fix))


def forget_vocabulary(teaching: Teaching) -> Vocabulary:
    """Return the vocabulary of the forget rows."""
    return Vocabulary.of(map(row_text, teaching.rows))


def _replaced(row: Record, others: Mapping[Name, Name], known: Vocabulary) -> Record:
    """Return the row with other names in all its texts."""
    if has_keys(row, "messages"):
        turns = read_turns(row["messages"])
        changed = [{**turn, "content": replace_names(turn["content"], others, known)} for turn in turns]
        return {**row, "messages": changed}
    keys = ("question", "answer", "text")
    return {key: replace_names(str(row[key]), others, known) for key in keys if has_keys(row, key)}


def with_questions(row: Record, new: Mapping[str, str]) -> Record:
    """Return the row with its questions replaced, as {question: new question}."""
    if has_keys(row, "messages"):
        turns = [
            {**turn, "content": new.get(str(turn["content"]), turn["content"])} if turn["role"] == "user" else turn
            for turn in row["messages"]
        ]
        return {**row, "messages": turns}
    return {**row, "question": new[str(row["question"])]} if has_keys(row, "question") else row
