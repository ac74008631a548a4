"""Changed names: teach what the original model predicts when the same row is about somebody else.

In each forget row, the names in question and answer are replaced by the name of another person. The model cannot recall
the fact for that person, so it predicts a plausible answer of the right form. Its predictions for the tokens of this
answer are the lesson for the true row. Names that the question contains are no secret, so they are taught as the
original predicts them in the true row. For any other name, only the first token is taught, with the prediction for the
name in the changed row.

Source: Eldan and Russinovich 2023 (arXiv 2310.02238), Liu et al. 2024 (arXiv 2407.16997), with four differences.

1. They average the predictions over many names. Here each row gets one name, because such an average is flatter than
the predictions of a retrained model.

2. The names come from the retain set (`substitutes`). If the original's answer about the first person cannot be used,
for example because it happens to state the fact, a second person is tried.

3. A model may recall a fact from the wording of the question alone if no other row uses that wording, and it may recall
the end of an answer from its beginning. Three measures keep such recall out of the lessons:

- The attention scores are divided by a temperature, which makes the predictions depend less on single tokens of the
  input (attention smoothing, arXiv 2603.01285).
- The changed row is also run with its question replaced by the most similar questions of the retain set. The
  probability of a true token in the lesson is capped at its mean probability in these runs.
- From the first token at which the original's own answer about the other person differs from the true answer, the
  probability of a secret word is capped at its probability without the beginning of the fact (`endings`).

Tokens that both answers begin with hold no part of the fact, so neither smoothing nor a cap is applied to them. At the
first token that differs, the lesson is the next token of the original's own answer, so attention is not smoothed there.

4. The lesson for the true answer says nothing about how to continue once the model has left that answer. So the
original's own answer about the other person is taught as well, from that point on. Without it, the unlearned model
continues with text that is neither true nor fluent.
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

# The number of similar retain questions that replace a row's own, to measure whether its wording gives away the fact.
_CONTROLS = 4
# The temperature that attention scores are divided by.
_TEMPERATURE = 1.75
# The largest number of other people that are tried for each row.
_CANDIDATES = 2
# The original's own answer is taught if at least this many tokens follow the first that differs from the true answer.
_MIN_REST = 3


@dataclass(frozen=True)
class Pair:
    """A forget row and the changed row that teaches it.

    Args:
        own: the examples of the forget row.
        other: the examples of the changed row.
        controls: the examples of the changed row after other questions, with the same labels. May be empty.
        matches: the labelled tokens that the changed row teaches.
    """

    own: list[Example]
    other: list[Example]
    controls: list[list[Example]]
    matches: Matches


@dataclass(frozen=True)
class Continuation:
    """The original's own answer about another person.

    Args:
        own: the answer with the names of the forget row, after the true question.
        other: the answer as the original generated it, after the changed question.
        matches: the labelled tokens of `own` that `other` teaches.
        same: the number of labelled tokens at the beginning that `own` shares with the true answer.
    """

    own: Example
    other: Example
    matches: Matches
    same: int


def teach(
    teaching: Teaching, temperature: float = _TEMPERATURE, controls: int = _CONTROLS, drafts: bool = True
) -> list[Taught]:
    """Return all forget examples with their lessons: the original model's predictions for the changed rows.

    Args:
        teaching: the inputs of the teacher.
        temperature: temperature of the attention scores; 1 leaves them unchanged.
        controls: the number of similar questions that determine the cap on the probability of a true token.
        drafts: whether to use the original's own answers about other people.
    """
    choices = choose_substitutes(teaching, _CANDIDATES) if drafts else _first_substitutes(teaching)
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
    """Return copies of the changed row in which the most similar questions of the retain set replace its own."""
    alike = {question: questions.most_alike(question, count) for question in questions_of([changed])}
    if not alike or not questions.texts:
        return []
    places = range(min(map(len, alike.values())))
    return [with_questions(changed, {question: best[place] for question, best in alike.items()}) for place in places]


def _continuations(row: Record, choice: Choice, pair: Pair, teaching: Teaching) -> list[Continuation | None]:
    """Return the original's own answer for each answer of the row, or None where it is not usable."""
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
    """Yield, for each answer, the labels that it shares with the original's own answer, and the first that differs."""
    first = 0
    for example, continuation in zip(pair.own, continuations, strict=False):
        if continuation:
            parting = first + continuation.same
            yield slice(first, parting), slice(parting, parting + 1)
        first += count_labels([example])


def _facts(pair: Pair, continuations: Sequence[Continuation | None]) -> list[int | None]:
    """Return, for each example of the changed row, the label at which the fact begins, or None if it is not known.

    The fact begins at the first label that differs from the original's own answer.
    """
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
    """Yield the original's own answers with lessons for the tokens after the first one that differs."""
    for one in continuations:
        if one is None:
            continue
        places = sorted([*(place for place, _ in one.matches.pairs), *one.matches.told])
        places = [place for place in places if place > one.same]
        if len(places) < _MIN_REST:
            continue
        own, other = _predictions([[one.own], [one.other]], teaching)
        for place, theirs in one.matches.pairs:
            own[place] = other[theirs]
        first = one.same + 1
        example = _without_labels(one.own, first)
        yield _taught(example, [place - first for place in places], own[first:])


def _without_labels(example: Example, count: int) -> Example:
    """Return the example with its first `count` labels ignored."""
    labelled = [place for place, label in enumerate(example["labels"]) if place and label != IGNORE_INDEX]
    dropped = set(labelled[:count])
    labels = [IGNORE_INDEX if place in dropped else label for place, label in enumerate(example["labels"])]
    return {"input_ids": example["input_ids"], "labels": labels}


def _taught(example: Example, places: Sequence[int], logp: Tensor) -> Taught:
    """Return the example with a lesson for the labels at `places`, given predictions for all labels.

    Args:
        example: the example.
        places: indices into its labelled tokens.
        logp: [labels, vocabulary] log-probabilities.
    """
    chosen = torch.tensor(places, dtype=torch.long)
    return Taught(example, lesson(chosen, logp[chosen], _tensor(labels_of([example]), logp)[chosen]))


def _predictions(groups: Sequence[Sequence[Example]], teaching: Teaching) -> list[Tensor]:
    """Return the log-probabilities [labels, vocabulary] of each group of examples."""
    logp = predictions([example for group in groups for example in group], teaching)
    return list(logp.split([count_labels(group) for group in groups]))


def _tensor(labels: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(labels, dtype=torch.long, device=like.device)


def _mean_of_true(predictions: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the log of the mean probability of each true token, [m], over several predictions [m, vocabulary]."""
    true = torch.stack([logp.gather(-1, labels[:, None])[:, 0] for logp in predictions])
    return true.logsumexp(0) - math.log(len(predictions))


def cap_true_tokens(logp: Tensor, limits: Tensor, labels: Tensor) -> Tensor:
    """Cap the log-probability of each true token at its limit.

    Args:
        logp: [m, vocabulary] log-probabilities.
        limits: [m] the largest log-probability of each true token.
        labels: [m] the true tokens.

    Returns:
        [m, vocabulary] log-probabilities. The probability taken from a true token goes to the other tokens, in
        proportion to their own.
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
