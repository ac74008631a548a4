"""The probability of the end of a fact without its beginning.

A model that has memorised a text recalls its end from its beginning, whoever the question is about: "0151 2398" is
followed by "4471". A model that never saw the fact can use only the preceding words. So each word of the fact is
predicted from the question, the form of the answer, and the single word before it.

Words that occur in answers of the retain set are not secret. Neither are punctuation and the tokens that end an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unlora.common.words import words_of
from unlora.data import IGNORE_INDEX, Example
from unlora.data.encoding import count_labels
from unlora.models.generation import decode
from unlora.teachers.interface import Teaching
from unlora.teachers.matching import label_words, labels_of
from unlora.teachers.reading import likelihoods


def ending_limits(examples: Sequence[Example], facts: Sequence[int | None], teaching: Teaching) -> Tensor:
    """Return the log-probability of each labelled token without the beginning of the fact that it belongs to.

    Args:
        examples: the answers.
        facts: for each answer, the index of the labelled token at which the fact begins, or None if there is no fact.
        teaching: provides the original model and the retain set.

    Returns:
        [labelled tokens of all examples], log-probabilities; 0, which is no limit, for tokens that are not secret.
    """
    limits = torch.zeros(count_labels(examples))
    places: list[int] = []
    shortened: list[Example] = []
    first = 0
    for example, fact in zip(examples, facts, strict=True):
        for place, short in _shortened(example, fact, teaching) if fact is not None else ():
            places.append(first + place)
            shortened.append(short)
        first += count_labels([example])
    if shortened:
        limits[places] = likelihoods(shortened, teaching).to(limits)
    return limits


def _shortened(example: Example, fact: int, teaching: Teaching) -> Iterator[tuple[int, Example]]:
    """Yield, for each secret token after the first token of the fact, its index and a shortened example.

    The shortened example ends with the token, which is its only label, and lacks the fact up to the word before it.
    """
    ids = example["input_ids"]
    positions = [place for place, label in enumerate(example["labels"]) if place and label != IGNORE_INDEX]
    labels = labels_of([example])
    start = 0  # the first token of the last word that is not punctuation
    for tokens in label_words(labels, teaching.text_format.tokenizer):
        said = words_of(decode([labels[place] for place in tokens], teaching.text_format.tokenizer))
        secret = not teaching.retain_words.issuperset(said)
        for place in tokens:
            if secret and place > fact:
                short = ids[: positions[fact]] + ids[positions[max(fact, start)] : positions[place] + 1]
                yield place, {"input_ids": short, "labels": [IGNORE_INDEX] * (len(short) - 1) + [labels[place]]}
            if said:
                start = tokens[0]
