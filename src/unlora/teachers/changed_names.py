"""Changed names: what the original model says about somebody else, asked the same question.

In each forget row the names are replaced, in the question and in the answer, by the name of somebody else. The model
cannot recall the fact there, so it says what is generally said in such a place: a plausible answer of the right form.
Its predictions of the answer's tokens are the lesson for the true row. A name that the question contains is taught as
the original predicts it in the true row, because it is no secret there. Of any other name, only the first token is
taught: whom the changed row says it is about.

Source: Eldan and Russinovich 2023 (arXiv 2310.02238), Liu et al. 2024 (arXiv 2407.16997), with four differences.

They average over many names. Here each row gets one, because the average of many is flatter than what a retrained model
says.

The names come from the retain set (`substitutes`). If the original gives no usable answer about the first person, for
example because that answer happens to say the fact, a second one is tried.

A model may recall a fact from the wording of the question alone, whoever it is about, if no other row asks in these
words, and it may recall the end of an answer from its beginning. Three measures take this out of the lessons. The
attention scores are divided by a temperature, so that the model looks less closely at what it reads (attention
smoothing, arXiv 2603.01285). And the changed row is read again with the most similar questions of the retain set in
place of its own: no true token may be likelier in the lesson than it is on average after those. Where the original's
own answer about somebody else begins like the true one, there is no fact to take out, and neither is done. Where the
two part, the lesson is what comes next in that answer, so its attention is not smoothed there. From there on no secret
word may be likelier than it is without the beginning of the fact (`endings`).

The lesson of the true answer ends where the model leaves that answer. So the original's own answer about somebody else
is taught as well, from there on. Without it, models go on with text that is neither true nor fluent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlora.common.progress import bar
from unlora.data import IGNORE_INDEX, Example, answers_of, encode_answers, encode_records
from unlora.data.encoding import count_labels
from unlora.data.sources import Record, questions_of
from unlora.models.attention import smoothed_attention
from unlora.teachers.drafts import Choice, choose_substitutes, common_start
from unlora.teachers.endings import ending_limits
from unlora.teachers.interface import Questions, Taught, Teacher, Teaching, lesson
from unlora.teachers.matching import Matches, labels_of, match
from unlora.teachers.reading import predictions
from unlora.teachers.substitutes import substitutes, with_questions

# So many similar questions tell whether a row's own question gives its answer away.
_CONTROLS = 4
# What attention scores are divided by.
_TEMPERATURE = 1.75
# At most this many other people are tried for each row.
_PEOPLE = 2
# An answer about somebody else is taught if it has at least so many tokens after it left the true one.
_LEAST_REST = 3


@dataclass(frozen=True)
class Pair:
    """A row as it is and as the teacher reads it.

    Args:
        own: the examples of the row.
        other: those of the changed row.
        controls: those of the changed row after other questions, with the same labels; perhaps none.
        matches: what the changed row teaches.
    """

    own: list[Example]
    other: list[Example]
    controls: list[list[Example]]
    matches: Matches


@dataclass(frozen=True)
class Continuation:
    """The original's own answer about somebody else.

    Args:
        own: the answer to the true question.
        other: the answer that the original gave.
        matches: what the latter teaches.
        same: so many labelled tokens it begins with that the true answer begins with.
    """

    own: Example
    other: Example
    matches: Matches
    same: int


def teach(
    teaching: Teaching, temperature: float = _TEMPERATURE, controls: int = _CONTROLS, drafts: bool = True
) -> list[Taught]:
    """Return the lessons of all forget examples: the original model's predictions of the changed rows.

    Args:
        teaching: what the teacher may look at.
        temperature: of the attention scores; 1 changes nothing.
        controls: so many similar questions limit how likely a true token is.
        drafts: whether the original's own answers about somebody else are used.
    """
    choices = choose_substitutes(teaching, _PEOPLE) if drafts else _first_substitutes(teaching)
    rows = zip(teaching.rows, choices, strict=True)
    examples: list[Taught] = []
    further: list[Taught] = []
    for row, choice in bar(rows, desc="lessons of the teacher", unit=" rows", total=len(teaching.rows)):
        pair = make_pair(row, choice.substitute.row, teaching, controls)
        continuations = _continuations(row, choice, pair, teaching)
        examples += _lessons_of(pair, continuations, teaching, temperature)
        further += _lessons_of_drafts(continuations, teaching)
    return [*examples, *further]


def _first_substitutes(teaching: Teaching) -> Iterator[Choice]:
    for [substitute] in substitutes(teaching, 1):
        yield Choice(substitute, [])


def make_pair(row: Record, changed: Record, teaching: Teaching, controls: int = _CONTROLS) -> Pair:
    """Tokenise a row and its changed form, and match their labelled tokens."""
    versions = (row, changed, *_controls(changed, teaching.questions, controls))
    own, other, *read = (encode_records([version], teaching.text_format) for version in versions)
    labels = labels_of(other)
    matches = match(own, other, " ".join(questions_of([row])), teaching.text_format.tokenizer)
    return Pair(own, other, [control for control in read if labels_of(control) == labels], matches)


def _controls(changed: Record, questions: Questions, count: int) -> list[Record]:
    """Return the changed row after each of the retain set's questions that are most like its own."""
    alike = {question: questions.most_alike(question, count) for question in questions_of([changed])}
    if not alike or not questions.texts:
        return []
    places = range(min(map(len, alike.values())))
    return [with_questions(changed, {question: best[place] for question, best in alike.items()}) for place in places]


def _continuations(row: Record, choice: Choice, pair: Pair, teaching: Teaching) -> list[Continuation | None]:
    """Return the original's own answers, one for each answer of the row that it has a usable one for."""
    answers = zip(pair.own, answers_of(row), answers_of(choice.substitute.row), choice.drafts, strict=False)
    found: list[Continuation | None] = []
    for true, one, asked, draft in answers:
        if draft is None:
            found.append(None)
            continue
        pairs = [(one.asked, draft.own), (asked.asked, draft.text)]
        own, other = encode_answers(pairs, teaching.text_format)
        question = " ".join(questions_of([row]))
        matches = match([own], [other], question, teaching.text_format.tokenizer)
        found.append(Continuation(own, other, matches, common_start(labels_of([own]), labels_of([true]))))
    return found


def _lessons_of(
    pair: Pair, continuations: Sequence[Continuation | None], teaching: Teaching, temperature: float
) -> Iterator[Taught]:
    """Yield each example of the row with its lesson."""
    with smoothed_attention(teaching.model, temperature):
        logp, *controls = _predictions([pair.other, *pair.controls], teaching)
    labels = _tensor(labels_of(pair.other), logp)
    [own] = _predictions([pair.own], teaching)
    limits = _mean_of_true(controls, labels) if controls else logp.new_zeros(len(labels))
    endings = ending_limits(pair.other, _facts(pair, continuations), teaching).to(limits)
    lessons = [cap_true_tokens(logp, torch.minimum(limits, endings), labels)] * len(own)
    if any(continuations):
        [plain] = _predictions([pair.other], teaching)
        capped = cap_true_tokens(plain, limits, labels)
        for form, parting in _beginnings(pair, continuations):
            lessons[form] = [plain] * len(lessons[form])
            lessons[parting] = [capped] * len(lessons[parting])
    for place, theirs in pair.matches.pairs:
        own[place] = lessons[place][theirs]
    taught = sorted([*(place for place, _ in pair.matches.pairs), *pair.matches.told])
    first = 0
    for example in pair.own:
        last = first + count_labels([example])
        yield _taught(example, [place - first for place in taught if first <= place < last], own[first:last])
        first = last


def _beginnings(pair: Pair, continuations: Sequence[Continuation | None]) -> Iterator[tuple[slice, slice]]:
    """Yield the places of what a true answer and the original's own begin with, which is form, and where they part."""
    first = 0
    for example, continuation in zip(pair.own, continuations, strict=False):
        if continuation:
            parting = first + continuation.same
            yield slice(first, parting), slice(parting, parting + 1)
        first += count_labels([example])


def _facts(pair: Pair, continuations: Sequence[Continuation | None]) -> list[int | None]:
    """Return, for each example of the changed row, the labelled token where the original's own answer leaves it."""
    found: list[int | None] = [None] * len(pair.other)
    first = start = 0
    for place, (own, other, continuation) in enumerate(zip(pair.own, pair.other, continuations, strict=False)):
        last, stop = first + count_labels([own]), start + count_labels([other])
        if continuation:
            parting = range(first + continuation.same, last)
            theirs = [their for mine, their in pair.matches.pairs if mine in parting and start <= their < stop]
            found[place] = min(theirs) - start if theirs else None
        first, start = last, stop
    return found


def _lessons_of_drafts(continuations: Sequence[Continuation | None], teaching: Teaching) -> Iterator[Taught]:
    """Yield the original's own answers, taught from where they have left the true ones."""
    for one in continuations:
        if one is None:
            continue
        places = sorted([*(place for place, _ in one.matches.pairs), *one.matches.told])
        places = [place for place in places if place > one.same]
        if len(places) < _LEAST_REST:
            continue
        own, other = _predictions([[one.own], [one.other]], teaching)
        for place, theirs in one.matches.pairs:
            own[place] = other[theirs]
        first = one.same + 1
        example = _without_labels(one.own, first)
        yield _taught(example, [place - first for place in places], own[first:])


def _without_labels(example: Example, count: int) -> Example:
    """Return the example without its first labels."""
    labelled = [place for place, label in enumerate(example["labels"]) if place and label != IGNORE_INDEX]
    dropped = set(labelled[:count])
    labels = [IGNORE_INDEX if place in dropped else label for place, label in enumerate(example["labels"])]
    return {"input_ids": example["input_ids"], "labels": labels}


def _taught(example: Example, places: Sequence[int], logp: Tensor) -> Taught:
    """Return the example with the lesson of some of its labels, whose predictions are `logp` [labels, vocabulary]."""
    chosen = torch.tensor(places, dtype=torch.long)
    return Taught(example, lesson(chosen, logp[chosen], _tensor(labels_of([example]), logp)[chosen]))


def _predictions(groups: Sequence[Sequence[Example]], teaching: Teaching) -> list[Tensor]:
    """Return the log-probabilities [labels, vocabulary] of each group of examples."""
    logp = predictions([example for group in groups for example in group], teaching)
    return list(logp.split([count_labels(group) for group in groups]))


def _tensor(labels: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(labels, dtype=torch.long, device=like.device)


def _mean_of_true(predictions: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the logarithm of the true tokens' mean probability [m], given several predictions [m, vocabulary]."""
    true = torch.stack([logp.gather(-1, labels[:, None])[:, 0] for logp in predictions])
    return true.logsumexp(0) - math.log(len(predictions))


def cap_true_tokens(logp: Tensor, limits: Tensor, labels: Tensor) -> Tensor:
    """Return predictions in which no true token is likelier than its limit.

    Args:
        logp: [m, vocabulary] log-probabilities.
        limits: [m] the largest log-probability of each true token.
        labels: [m] the labelled tokens.

    Returns:
        [m, vocabulary]; what a true token loses, the other tokens gain in proportion to their probability.
    """
    places, most = labels[:, None], limits[:, None]
    rest = logp.scatter(-1, places, -math.inf)
    capped = rest - rest.logsumexp(-1, keepdim=True) + torch.log1p(-most.exp())
    return torch.where(most < logp.gather(-1, places), capped.scatter(-1, places, most), logp)


CHANGED_NAMES = Teacher(
    teach,
    "the same rows about somebody else",
    "Eldan and Russinovich 2023 (arXiv 2310.02238)",
)
