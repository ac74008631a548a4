"""Changed names: what the original model says about somebody else, asked the same question.

In each forget row the names are replaced, in the question and in the answer, by the name of somebody else. The model
cannot recall the fact there, so it says what is generally said in such a place: a plausible answer of the right form.
Its predictions of the answer's tokens are the lesson for the true row. A name that the question contains is taught as
the original predicts it in the true row, because it is no secret there. Of any other name, only the first token is
taught: whom the changed row says it is about.

Source: Eldan and Russinovich 2023 (arXiv 2310.02238), Liu et al. 2024 (arXiv 2407.16997), with three differences.

They average over many names. Here each row gets one, because the average of many is flatter than what a retrained model
says.

The names come from the retain set. The original learned the forgotten answers as answers that people give, and so
favours them for strangers too, but not for people of whom it knows the answer.

A model may recall a fact from the wording of the question alone, whoever it is about, if no other row asks in these
words, and it may recall the end of an answer from its beginning. Two measures take this out of the lessons. The
attention scores are divided by a temperature, so that the model looks less closely at what it reads (attention
smoothing, arXiv 2603.01285). And the changed row is read again with the most similar questions of the retain set in
place of its own: no true token may be likelier in the lesson than it is on average after those.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from heapq import nlargest
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unlora.common.errors import InputError, Problem
from unlora.common.progress import bar
from unlora.data import IGNORE_INDEX, Example, encode_records, pad_batch, padding_id
from unlora.data.conversations import read_turns
from unlora.data.encoding import count_labels
from unlora.data.lessons import Lesson
from unlora.data.names import Name, Vocabulary, detect_names, invent_names, replace_names
from unlora.data.sources import Record, fingerprint, has_keys, questions_of
from unlora.models.attention import smoothed_attention
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
# So many similar questions tell whether a row's own question gives its answer away.
_CONTROLS = 4
# After fewer common words than this, what differs is the rest of a name.
_LEAST_SAME = 2
# From here on scripts have no spaces between words, so each token counts as a word (kana, Chinese characters, Hangul).
_UNSPACED = "\u3040"
# What attention scores are divided by.
_TEMPERATURE = 1.75


@dataclass(frozen=True)
class Pair:
    """A row as it is and as the teacher reads it.

    Args:
        own: the examples of the row.
        other: those of the changed row.
        controls: those of the changed row after other questions, with the same labels; perhaps none.
        matches: labelled tokens of own and where their lesson is in other, as [(place in own, place in other)].
        told: places in own of names that the question contains.
    """

    own: list[Example]
    other: list[Example]
    controls: list[list[Example]]
    matches: list[tuple[int, int]]
    told: list[int]


def teach(teaching: Teaching, temperature: float = _TEMPERATURE, controls: int = _CONTROLS) -> list[Lesson]:
    """Return the lessons of all forget examples: the original model's predictions of the changed rows.

    Args:
        teaching: what the teacher may look at.
        temperature: of the attention scores; 1 changes nothing.
        controls: so many similar questions limit how likely a true token is.
    """
    rows = list(zip(teaching.rows, change(teaching), strict=True))
    shown = bar(rows, desc="lessons of the teacher", unit=" rows")
    pairs = (make_pair(row, changed, teaching, controls) for row, changed in shown)
    return [lesson for pair in pairs for lesson in _lessons_of(pair, teaching, temperature)]


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
    draw = random.Random(teaching.seed)

    def changed(row: Record) -> Record:
        new = _replaced(row, {name: draw.choice(people) for name in names}, known)
        questions = questions_of([new])
        if teaching.asked and questions == questions_of([row]):
            return _with_questions(
                new, {question: _most_alike(question, teaching.asked, 1)[0] for question in questions}
            )
        return new

    new_rows = [changed(row) for row in teaching.rows]
    same = [
        place
        for place, (row, new) in enumerate(zip(teaching.rows, new_rows, strict=True))
        if fingerprint(new) == fingerprint(row)
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
        return "\n".join(turn["content"] for turn in read_turns(row["messages"]))
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
        turns = read_turns(row["messages"])
        changed = [{**turn, "content": replace_names(turn["content"], substitutes, known)} for turn in turns]
        return {**row, "messages": changed}
    keys = ("question", "answer", "text")
    return {key: replace_names(str(row[key]), substitutes, known) for key in keys if has_keys(row, key)}


def _with_questions(row: Record, new: Mapping[str, str]) -> Record:
    """Return the row with other questions, given the new one for each."""
    if has_keys(row, "messages"):
        turns = [
            {**turn, "content": new.get(str(turn["content"]), turn["content"])} if turn["role"] == "user" else turn
            for turn in row["messages"]
        ]
        return {**row, "messages": turns}
    return {**row, "question": new[str(row["question"])]} if has_keys(row, "question") else row


def _most_alike(question: str, others: Sequence[str], count: int) -> list[str]:
    """Return the questions that share the largest part of their words with this one (Jaccard), the best first."""
    own = _bag(question)
    return nlargest(count, others, key=lambda other: len(own & _bag(other)) / max(1, len(own | _bag(other))))


@cache
def _bag(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in re.findall(r"\w+", text))


def make_pair(row: Record, changed: Record, teaching: Teaching, controls: int = _CONTROLS) -> Pair:
    """Tokenise a row and its changed form, and match their labelled tokens.

    The two differ in names alone, so the longest common runs of words are the same. This needs neither character
    offsets nor knowledge of the chat template.
    """
    own, other, *read = (
        encode_records([version], teaching.text_format)
        for version in (row, changed, *_controls(changed, teaching, controls))
    )
    tokenizer = teaching.text_format.tokenizer
    labels, others = _labels(own), _labels(other)
    mine, theirs = _words(labels, tokenizer), _words(others, tokenizer)
    words = [[tuple(ids[place] for place in word) for word in side] for ids, side in ((labels, mine), (others, theirs))]
    asked = " ".join(questions_of([row]))
    matches: list[tuple[int, int]] = []
    told: list[int] = []
    same = _LEAST_SAME
    for kind, first, last, start, stop in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        own_places, places = list(chain(*mine[first:last])), list(chain(*theirs[start:stop]))
        if kind == "equal":
            matches += zip(own_places, places, strict=True)
            same = last - first
        elif tokenizer.decode([labels[place] for place in own_places]).strip() in asked:
            told += own_places
        elif kind == "replace" and same >= _LEAST_SAME:  # a new name after the same words
            matches.append((own_places[0], places[0]))
            same = 0
    return Pair(own, other, [control for control in read if _labels(control) == others], matches, told)


def _words(labels: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the places of the labels word by word, so that names are told apart as words and not by common letters."""
    words: list[list[int]] = []
    last = ""
    for place in range(len(labels)):
        before = tokenizer.decode(labels[place - 1 : place]) if place else ""
        text = tokenizer.decode(labels[max(0, place - 1) : place + 1])[len(before) :]
        if words and last.isalpha() and text[:1].isalpha() and text[0] < _UNSPACED:
            words[-1].append(place)
        else:
            words.append([place])
        last = text[-1:]
    return words


def _controls(changed: Record, teaching: Teaching, count: int) -> list[Record]:
    """Return the changed row after each of the retain set's questions that are most like its own."""
    alike = {question: _most_alike(question, teaching.asked, count) for question in questions_of([changed])}
    if not alike or not teaching.asked:
        return []
    places = range(min(map(len, alike.values())))
    return [_with_questions(changed, {question: best[place] for question, best in alike.items()}) for place in places]


@torch.no_grad()
def _lessons_of(pair: Pair, teaching: Teaching, temperature: float) -> Iterator[Lesson]:
    """Yield the lesson of each example of the row."""
    with smoothed_attention(teaching.model, temperature):
        logp, labels = _predictions(pair.other, teaching)
        controls = [_predictions(control, teaching)[0] for control in pair.controls]
    if controls:
        logp = cap_true_tokens(logp, controls, labels)
    own, labels = _predictions(pair.own, teaching)
    mine, theirs = torch.tensor(pair.matches, dtype=torch.long).view(-1, 2).unbind(1)
    own[mine] = logp[theirs]
    taught = torch.tensor(sorted([*mine.tolist(), *pair.told]), dtype=torch.long)
    first = 0
    for example in pair.own:
        last = first + count_labels([example])
        places = taught[(first <= taught) & (taught < last)]
        yield lesson(places - first, own[places], labels[places])
        first = last


def _predictions(examples: Sequence[Example], teaching: Teaching) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [m, vocabulary] and the labels [m]."""
    out = labelled_tokens(teaching.model, pad_batch(examples, padding_id(teaching.text_format.tokenizer)))
    return upcast(out.logits).log_softmax(-1), out.targets


def cap_true_tokens(logp: Tensor, others: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return predictions in which a true token is no likelier than after other questions.

    Args:
        logp: [m, vocabulary] log-probabilities after the row's own question.
        others: of the same answer after other questions, each [m, vocabulary].
        labels: [m] the labelled tokens.

    Returns:
        [m, vocabulary]; what a true token loses, the other tokens gain in proportion to their probability.
    """
    places = labels[:, None]
    own = logp.gather(-1, places)
    mean = torch.stack([other.gather(-1, places) for other in others]).logsumexp(0) - math.log(len(others))
    rest = logp.scatter(-1, places, -math.inf)
    capped = rest - rest.logsumexp(-1, keepdim=True) + torch.log1p(-mean.exp())
    return torch.where(mean < own, capped.scatter(-1, places, mean), logp)


def _labels(examples: Iterable[Example]) -> list[int]:
    """Return the labelled tokens; the first token of an example is never predicted."""
    return [label for example in examples for label in example["labels"][1:] if label != IGNORE_INDEX]


CHANGED_NAMES = Teacher(
    teach,
    "the same rows about somebody else",
    "Eldan and Russinovich 2023 (arXiv 2310.02238)",
)
