"""How likely the end of a fact is without its beginning.

A model that knows a text by heart recalls its end from its beginning, whoever the question is about: after "0151 2398"
comes "4471". A model that never saw the fact has only the words just before to go by. So each word of the fact is read
after the question, the form of the answer, and the single word before it.

Words that answers of the retain set contain are not secret. Neither are punctuation and the tokens that end an answer.
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
    """Return how likely each labelled token is without the beginning of the fact that it belongs to.

    Args:
        examples: the answers.
        facts: the labelled token at which the fact begins in each of them, None for no fact.
        teaching: has the original model and the retain set.

    Returns:
        [labelled tokens of all examples], log-probabilities; 0 where nothing is hidden.
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
    """Yield each secret token after the fact's first one, and the example up to it without the fact's beginning."""
    ids = example["input_ids"]
    positions = [place for place, label in enumerate(example["labels"]) if place and label != IGNORE_INDEX]
    labels = labels_of([example])
    start = 0  # of the word before, or of the one that the token is part of
    for tokens in label_words(labels, teaching.text_format.tokenizer):
        said = words_of(decode([labels[place] for place in tokens], teaching.text_format.tokenizer))
        secret = not teaching.retain_words.issuperset(said)
        for place in tokens:
            if secret and place > fact:
                short = ids[: positions[fact]] + ids[positions[max(fact, start)] : positions[place] + 1]
                yield place, {"input_ids": short, "labels": [IGNORE_INDEX] * (len(short) - 1) + [labels[place]]}
            if said:
                start = tokens[0]
