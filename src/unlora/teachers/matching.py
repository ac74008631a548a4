"""Align the labelled tokens of two versions of a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import chain
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from unlora.data import IGNORE_INDEX, Example

# A difference after fewer common words than this is the rest of a name rather than a new one.
_MIN_SAME = 2
# Tokens that start with a character from here on (kana, Chinese characters, Hangul) each count as a word, because most
# of these scripts have no spaces between words.
_UNSPACED = "\u3040"


class Matches(NamedTuple):
    """The labelled tokens of a row that are taught, as indices into its labelled tokens.

    Args:
        pairs: (index in the row, index in the other version) of the tokens that the other version teaches.
        told: the tokens of names that the question contains and that are therefore no secret.
    """

    pairs: list[tuple[int, int]]
    told: list[int]


def match(own: Sequence[Example], other: Sequence[Example], asked: str, tokenizer: PreTrainedTokenizerFast) -> Matches:
    """Match the labelled tokens of a row with those of the same row about another person.

    The two versions differ in names only, so they are aligned by their longest common runs of words. This needs neither
    character offsets nor knowledge of the chat template. For a name that the question does not contain, only the first
    token is matched, with the first token of the name in the other version.

    Args:
        own: the examples of the row.
        other: the examples of the other version.
        asked: the questions of the row.
        tokenizer: the tokenizer of both.
    """
    labels, others = labels_of(own), labels_of(other)
    mine, theirs = label_words(labels, tokenizer), label_words(others, tokenizer)
    words = [[tuple(ids[place] for place in word) for word in side] for ids, side in ((labels, mine), (others, theirs))]
    pairs: list[tuple[int, int]] = []
    told: list[int] = []
    same = _MIN_SAME
    for kind, first, last, start, stop in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        own_places, places = list(chain(*mine[first:last])), list(chain(*theirs[start:stop]))
        if kind == "equal":
            pairs += zip(own_places, places, strict=True)
            same = last - first
        elif _text([labels[place] for place in own_places], tokenizer).strip() in asked:
            told += own_places
        elif kind == "replace" and same >= _MIN_SAME:  # a new name after common words
            pairs.append((own_places[0], places[0]))
            same = 0
    return Matches(pairs, told)


def labels_of(examples: Iterable[Example]) -> list[int]:
    """Return the labelled tokens of all examples, without the first token of each, which is never predicted."""
    return [label for example in examples for label in example["labels"][1:] if label != IGNORE_INDEX]


def label_words(labels: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Group the indices of the labels by word, so that names are compared as whole words, not by tokens they share."""
    words: list[list[int]] = []
    last = ""
    for place in range(len(labels)):
        before = _text(labels[place - 1 : place], tokenizer) if place else ""
        text = _text(labels[max(0, place - 1) : place + 1], tokenizer)[len(before) :]
        if words and last.isalpha() and text[:1].isalpha() and text[0] < _UNSPACED:
            words[-1].append(place)
        else:
            words.append([place])
        last = text[-1:]
    return words


def _text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> str:
    text: str = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    return text
