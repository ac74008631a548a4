"""Find near-duplicate rows of the forget and the retain set: the retain row would teach what is to be forgotten."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from unlora.common.words import words_of
from unlora.data.sources import Record, row_text

# Jaccard similarity of the word sets of near-duplicates.
_ALIKE = 0.9


def near_duplicates(forget: Sequence[Record], retain: Sequence[Record]) -> list[tuple[int, int]]:
    """Return pairs of indices (forget row, retain row) of near-duplicates, each forget row with its closest retain row.

    Two rows are near-duplicates if the Jaccard similarity of their words is at least 0.9. They then share at least one
    of their rarest words, so only such rows are compared (prefix filtering, Chaudhuri et al. 2006).
    """
    sets = [[_words(row) for row in rows] for rows in (forget, retain)]
    frequency = Counter(word for rows in sets for words in rows for word in words)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(sets[1]):
        for word in _rarest(words, frequency):
            holders[word].append(place)
    found = []
    for place, words in enumerate(sets[0]):
        near = {other for word in _rarest(words, frequency) for other in holders[word]}
        best = max(near, key=lambda other: (_jaccard(words, sets[1][other]), -other), default=None)
        if best is not None and _jaccard(words, sets[1][best]) >= _ALIKE:
            found.append((place, best))
    return found


def _rarest(words: frozenset[str], frequency: Counter[str]) -> list[str]:
    """Return the rarest words of a row, as many as are needed for every near-duplicate to contain one of them."""
    count = len(words) - math.ceil(_ALIKE * len(words)) + 1 if words else 0
    return sorted(words, key=lambda word: (frequency[word], word))[:count]


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _words(row: Record) -> frozenset[str]:
    return frozenset(words_of(row_text(row)))
