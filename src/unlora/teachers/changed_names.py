"""Changed names: what the original model says about somebody else, asked the same question.

In each forget row the names are replaced, in the question and in the answer, by the name of somebody else. The model
cannot recall the fact there, so it says what is generally said in such a place: a plausible answer of the right form.
Its predictions of the answer's tokens are the lesson for the true row. Tokens of the names themselves are not taught.

Source: Eldan and Russinovich 2023 (arXiv 2310.02238), Liu et al. 2024 (arXiv 2407.16997), with two differences. They
average over many names; here each row gets one, because the average of many is flatter than what a retrained model
says. And the names come from the retain set: the original learned the forgotten answers as answers that people give,
and so favours them for strangers too, but not for people of whom it knows the answer.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

from unlora.common.errors import InputError, Problem
from unlora.common.progress import bar
from unlora.data import IGNORE_INDEX, Example, encode_records, pad_batch, padding_id
from unlora.data.encoding import count_labels
from unlora.data.lessons import Lesson
from unlora.data.names import Name, Vocabulary, detect_names, invent_names, replace_names
from unlora.data.sources import Record, has_keys
from unlora.models.forward import labelled_tokens
from unlora.models.log_probabilities import upcast
from unlora.teachers.interface import Teacher, Teaching, lesson

logger = logging.getLogger(__name__)
# How many detected names are shown.
_SHOWN = 10
# In how many rows a phrase of the retain set recurs that is somebody's name.
_RECURRING = 2
# With fewer people than this in the retain set, names are invented: nobody should be taken for the only other person.
_FEWEST = 3


@dataclass(frozen=True)
class Pair:
    """A row as it is and as the teacher reads it.

    Args:
        own: the examples of the row.
        other: those of the changed row.
        matches: labelled tokens that both have, as [(place among the own, place among the other)].
    """

    own: list[Example]
    other: list[Example]
    matches: list[tuple[int, int]]


def _teach(teaching: Teaching) -> list[Lesson]:
    """Return the lessons of all forget examples: the original model's predictions of the changed rows."""
    rows = list(zip(teaching.rows, change(teaching), strict=True))
    shown = bar(rows, desc="lessons of the teacher", unit=" rows")
    return [lesson for row, changed in shown for lesson in _lessons_of(make_pair(row, changed, teaching), teaching)]


def change(teaching: Teaching) -> list[Record]:
    """Return the forget rows as rows about somebody else.

    A row that names nobody in its question gets the retain question that is most like its own: what the answer says
    then answers another question.

    Raises:
        InputError: rows that name nobody and have no question. They would not change, and so teach what they say.
    """
    texts, others = (list(map(_row_text, rows)) for rows in (teaching.rows, teaching.retain_rows))
    names = teaching.names or _detected(texts, others)
    known = Vocabulary.of(others)
    people = covering_names(others, [name for name in detect_names(others, texts, _RECURRING) if len(name) > 1])
    if len(people) < _FEWEST:
        people = invent_names(people, max(_FEWEST, len(names)), teaching.seed, names)
    questions = [str(row["question"]) for row in teaching.retain_rows if has_keys(row, "question")]
    draw = random.Random(teaching.seed)

    def changed(row: Record) -> Record:
        new = _replaced(row, {name: draw.choice(people) for name in names}, known)
        if has_keys(row, "question") and new["question"] == row["question"] and questions:
            return {**new, "question": _most_alike(str(row["question"]), questions)}
        return new

    new_rows = [changed(row) for row in teaching.rows]
    same = [
        place
        for place, (row, new) in enumerate(zip(teaching.rows, new_rows, strict=True))
        if new.items() <= row.items()
    ]
    if same:
        reason = f"the forget rows {', '.join(map(str, same[:5]))}{' ...' if len(same) > 5 else ''} name none of them"
        fix = "name everybody with --forget_names, or use another loss"
        raise InputError(Problem("forget_names", [" ".join(name) for name in names], reason, fix))
    return new_rows


def _detected(texts: Sequence[str], others: Sequence[str]) -> list[Name]:
    """Return whom the rows are about, and tell the user, who knows better."""
    names = covering_names(texts, detect_names(texts, others))
    words = ", ".join(" ".join(name) for name in names[:_SHOWN]) or "nobody"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    logger.warning("the forget set seems to be about %s%s; --forget_names names others", words, more)
    return names


def _row_text(row: Record) -> str:
    """All that a row says."""
    if has_keys(row, "messages"):
        return "\n".join(str(turn.get("content") or "") for turn in row["messages"])
    return "\n".join(str(row[key]) for key in ("question", "answer", "text") if has_keys(row, key))


def covering_names(texts: Sequence[str], names: Sequence[Name]) -> list[Name]:
    """Return the names that the rows are about, out of all that occur: each the most frequent one in rows without any.

    Titles and places recur too, but in rows that name a person as well.
    """
    left, chosen = set(range(len(texts))), []
    holding = {name: {place for place, text in enumerate(texts) if " ".join(name) in text} for name in names}
    while left and holding:
        best = max(holding, key=lambda name: (len(holding[name] & left), len(name)))
        if not holding[best] & left:
            break
        chosen.append(best)
        left -= holding.pop(best)
    return chosen


def _replaced(row: Record, substitutes: Mapping[Name, Name], known: Vocabulary) -> Record:
    """Return the row with other names in all its texts."""
    if has_keys(row, "messages"):
        return {
            "messages": [
                {**turn, "content": replace_names(turn["content"], substitutes, known)} if turn.get("content") else turn
                for turn in row["messages"]
            ]
        }
    keys = ("question", "answer", "text")
    return {key: replace_names(str(row[key]), substitutes, known) for key in keys if has_keys(row, key)}


def _most_alike(question: str, others: Sequence[str]) -> str:
    """Return the question that shares the largest part of its words (Jaccard)."""
    own = _bag(question)
    return max(others, key=lambda other: len(own & _bag(other)) / max(1, len(own | _bag(other))))


def _bag(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"\w+", text)}


def make_pair(row: Record, changed: Record, teaching: Teaching) -> Pair:
    """Tokenise a row and its changed form, and match their labelled tokens.

    The two differ in names alone, so the longest common runs of labels are the same words. This needs neither character
    offsets nor knowledge of the chat template.
    """
    own, other = (encode_records([version], teaching.text_format) for version in (row, changed))
    labels = [[label for example in side for label in _labels(example)] for side in (own, other)]
    blocks = SequenceMatcher(a=labels[0], b=labels[1], autojunk=False).get_matching_blocks()
    matches = [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]
    return Pair(own, other, matches)


@torch.no_grad()
def _lessons_of(pair: Pair, teaching: Teaching) -> Iterator[Lesson]:
    """One lesson for each example of the row."""
    pad_id = padding_id(teaching.text_format.tokenizer)
    out = labelled_tokens(teaching.model, pad_batch(pair.other, pad_id))
    mine, theirs = torch.tensor(pair.matches, dtype=torch.long).view(-1, 2).unbind(1)
    logp, labels = upcast(out.logits[theirs]).log_softmax(-1), out.targets[theirs]
    first = 0
    for example in pair.own:
        last = first + count_labels([example])
        chosen = (first <= mine) & (mine < last)
        yield lesson(mine[chosen] - first, logp[chosen], labels[chosen])
        first = last


def _labels(example: Example) -> list[int]:
    """The labelled tokens; the first token of an example is never predicted."""
    return [label for label in example["labels"][1:] if label != IGNORE_INDEX]


CHANGED_NAMES = Teacher(
    _teach,
    "the same rows about somebody else",
    "Eldan and Russinovich 2023 (arXiv 2310.02238)",
)
