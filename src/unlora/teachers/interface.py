"""The interface of teachers and their inputs.

Losses such as gradient ascent lower the probability of the true answer but do not define what should replace it, so the
model produces broken text instead. A teacher defines it: for each token of a forget answer it predicts the distribution
of a model that does not know the fact. The original model makes these predictions once, before training, from rows in
which the fact does not apply.
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
from unlora.teachers.people import detected_names, texts_without

# The number of most likely tokens of each prediction that are stored. The probabilities of all others are summed.
_KEPT = 128


class Taught(NamedTuple):
    """A training example and the predictions of a teacher for its labels."""

    example: Example
    lesson: Lesson


class Questions:
    """A search index of questions by their words.

    Args:
        texts: the questions.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(dict.fromkeys(texts))
        self._words = [frozenset(words_of(text)) for text in self.texts]

    def most_alike(self, question: str, count: int) -> list[str]:
        """Return the `count` questions with the highest Jaccard similarity of words, the most similar first."""
        own = frozenset(words_of(question))
        shares = [len(own & other) / max(1, len(own | other)) for other in self._words]
        return [self.texts[place] for place in nlargest(count, range(len(shares)), key=shares.__getitem__)]


@dataclass(frozen=True)
class Teaching:
    """The inputs of a teacher.

    Args:
        model: the model before unlearning, which the teacher must not change.
        text_format: the tokenizer and prompt format.
        rows: the forget set.
        retain_rows: the retain set.
        names: the names of the people that the forget rows are about; detected if not given.
        seed: the seed of all random choices.
    """

    model: nn.Module
    text_format: TextFormat
    rows: Sequence[Record]
    retain_rows: Sequence[Record]
    names: Sequence[Name] | None = None
    seed: int = 42

    @cached_property
    def forget_names(self) -> Sequence[Name]:
        """The given names, or else the detected ones."""
        return self.names or detected_names(self.rows, self.retain_rows)

    @cached_property
    def questions(self) -> Questions:
        """The questions of the retain set about other people."""
        return Questions(texts_without(self.forget_names, questions_of(self.retain_rows)))

    @cached_property
    def retain_words(self) -> frozenset[str]:
        """The words of the retain set's answers."""
        answers = all_answers(self.retain_rows, "retain_data")
        return frozenset(word for one in answers for word in words_of(one.answer))


@dataclass(frozen=True)
class Teacher:
    """A method to predict forget answers without knowledge of the fact.

    Args:
        teach: returns the forget examples in the order of `encode_records`, each with its lesson, and then any further
            examples to train on.
        description: the input of the teacher, as the documentation shows it.
        paper: the citation.
    """

    teach: Callable[[Teaching], list[Taught]]
    description: str
    paper: str


def lesson(places: Tensor, logp: Tensor, labels: Tensor) -> Lesson:
    """Reduce predictions to a lesson, which stores the most likely tokens and always the true one.

    Args:
        places: [m] indices of the predictions among the labelled tokens of the example.
        logp: [m, vocabulary] log-probabilities.
        labels: [m] the true tokens.
    """
    ids = logp.topk(min(_KEPT, logp.shape[-1] - 1), -1).indices
    missing = (ids != labels[:, None]).all(-1)
    ids[missing, -1] = labels[missing]  # replaces the least likely of the stored tokens
    kept, true = with_others(logp.gather(-1, ids)), logp.gather(-1, labels[:, None])[:, 0]
    return Lesson(places.cpu(), ids.cpu(), kept.float().cpu(), true.float().cpu())
