"""What a teacher is, and what it may look at.

Losses such as ascent push the true answer down and do not say what should come instead, so broken text comes instead. A
teacher says it: for each token of a forget answer it gives the prediction of a model that does not know the fact. The
original model makes these predictions once, before training, from rows in which the fact does not apply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest
from typing import NamedTuple

from torch import Tensor, nn

from unlora.common.words import words_of
from unlora.data import Example, TextFormat
from unlora.data.conversations import all_answers
from unlora.data.lessons import Lesson, with_others
from unlora.data.names import Name
from unlora.data.sources import Record, questions_of

# So many of a prediction's likeliest tokens are kept one by one; the others count together.
_KEPT = 128


class Taught(NamedTuple):
    """An example that the model is trained on, and what a teacher predicts for its labels."""

    example: Example
    lesson: Lesson


class Questions:
    """Questions, to be found by their words.

    Args:
        texts: the questions.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(dict.fromkeys(texts))
        self._words = [frozenset(words_of(text)) for text in self.texts]

    def most_alike(self, question: str, count: int) -> list[str]:
        """Return the questions that share the largest part of their words with this one (Jaccard), the best first."""
        own = frozenset(words_of(question))
        shares = [len(own & other) / max(1, len(own | other)) for other in self._words]
        return [self.texts[place] for place in nlargest(count, range(len(shares)), key=shares.__getitem__)]


@dataclass(frozen=True)
class Teaching:
    """What a teacher may look at.

    Args:
        model: the model before unlearning; left as it was found.
        text_format: how rows become tokens.
        rows: the forget set.
        retain_rows: the retain set.
        names: who the forget rows are about; detected if not given.
        seed: of everything that is drawn.
    """

    model: nn.Module
    text_format: TextFormat
    rows: Sequence[Record]
    retain_rows: Sequence[Record]
    names: Sequence[Name] | None = None
    seed: int = 42

    @cached_property
    def questions(self) -> Questions:
        """The questions of the retain set."""
        return Questions(questions_of(self.retain_rows))

    @cached_property
    def retain_words(self) -> frozenset[str]:
        """The words of the retain set's answers."""
        answers = all_answers(self.retain_rows, "retain_data")
        return frozenset(word for one in answers for word in words_of(one.answer))


@dataclass(frozen=True)
class Teacher:
    """One way to get predictions that do not know the fact.

    Args:
        teach: gives the forget examples in the order of `encode_records`, each with a lesson, and after them further
            examples if the teacher has any.
        description: what the teacher reads, as it stands in the documentation.
        paper: where it comes from.
    """

    teach: Callable[[Teaching], list[Taught]]
    description: str
    paper: str


def lesson(places: Tensor, logp: Tensor, labels: Tensor) -> Lesson:
    """Return the lesson of some predictions.

    Args:
        places: [m] of the labelled tokens.
        logp: [m, vocabulary] log-probabilities.
        labels: [m] the labelled tokens themselves.
    """
    ids = logp.topk(min(_KEPT, logp.shape[-1] - 1), -1).indices
    missing = (ids != labels[:, None]).all(-1)
    ids[missing, -1] = labels[missing]  # in place of the least likely one
    kept, true = with_others(logp.gather(-1, ids)), logp.gather(-1, labels[:, None])[:, 0]
    return Lesson(places.cpu(), ids.cpu(), kept.float().cpu(), true.float().cpu())
