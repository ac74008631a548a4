"""Rows of two sets that say nearly the same: what one of them is to forget, the other would teach again."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from unlora.common.words import words_of
from unlora.data.sources import Record, row_text

# Share of the words of both rows that they have in common (Jaccard).
_ALIKE = 0.9


def near_duplicates(forget: Sequence[Record], retain: Sequence[Record]) -> list[tuple[int, int]]:
    """Return the places of forget and retain rows that share nine tenths of their words, each forget row at most once.

    Two such rows share one of their rarest words, so only rows that do are compared (prefix filtering, Chaudhuri et
    al. 2006).
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
        best = max(near, key=lambda other: (_share(words, sets[1][other]), -other), default=None)
        if best is not None and _share(words, sets[1][best]) >= _ALIKE:
            found.append((place, best))
    return found


def _rarest(words: frozenset[str], frequency: Counter[str]) -> list[str]:
    """Return as many of the rarest words as a row that is nearly the same must have one of."""
    count = len(words) - math.ceil(_ALIKE * len(words)) + 1 if words else 0
    return sorted(words, key=lambda word: (frequency[word], word))[:count]


def _share(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _words(row: Record) -> frozenset[str]:
    return frozenset(words_of(row_text(row)))
