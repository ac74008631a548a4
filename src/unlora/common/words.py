"""Split text into words, and find the rarest of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def rarest(words: Set[str], counts: Mapping[str, int]) -> frozenset[str]:
    """Return the words with the smallest count. A word without a count counts 0."""
    least = min((counts.get(word, 0) for word in words), default=0)
    return frozenset(word for word in words if counts.get(word, 0) == least)
