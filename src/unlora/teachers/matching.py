"""Which labelled tokens of two versions of a row are the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import chain
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from unlora.data import IGNORE_INDEX, Example

# After fewer common words than this, what differs is the rest of a name.
_LEAST_SAME = 2
# From here on scripts have no spaces between words, so each token counts as a word (kana, Chinese characters, Hangul).
_UNSPACED = "\u3040"


class Matches(NamedTuple):
    """What is taught of a row, by the place of each labelled token.

    Args:
        pairs: (place in the row, place in the other version) of what the other version teaches.
        told: places of names that the question contains, which are no secret.
    """

    pairs: list[tuple[int, int]]
    told: list[int]


def match(own: Sequence[Example], other: Sequence[Example], asked: str, tokenizer: PreTrainedTokenizerFast) -> Matches:
    """Match the labelled tokens of a row with those of the same row about somebody else.

    The two differ in names alone, so the longest common runs of words are the same. This needs neither character
    offsets nor knowledge of the chat template. Of a name that the question does not contain, the first token alone is
    matched: whom the other version says it is about.

    Args:
        own: the examples of the row.
        other: those of the other version.
        asked: the questions of the row.
        tokenizer: of both.
    """
    labels, others = labels_of(own), labels_of(other)
    mine, theirs = label_words(labels, tokenizer), label_words(others, tokenizer)
    words = [[tuple(ids[place] for place in word) for word in side] for ids, side in ((labels, mine), (others, theirs))]
    pairs: list[tuple[int, int]] = []
    told: list[int] = []
    same = _LEAST_SAME
    for kind, first, last, start, stop in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        own_places, places = list(chain(*mine[first:last])), list(chain(*theirs[start:stop]))
        if kind == "equal":
            pairs += zip(own_places, places, strict=True)
            same = last - first
        elif _text([labels[place] for place in own_places], tokenizer).strip() in asked:
            told += own_places
        elif kind == "replace" and same >= _LEAST_SAME:  # a new name after the same words
            pairs.append((own_places[0], places[0]))
            same = 0
    return Matches(pairs, told)


def labels_of(examples: Iterable[Example]) -> list[int]:
    """Return the labelled tokens; the first token of an example is never predicted."""
    return [label for example in examples for label in example["labels"][1:] if label != IGNORE_INDEX]


def label_words(labels: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the places of the labels word by word, so that names are told apart as words and not by common letters."""
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
