"""Find the names of the people that the forget rows are about."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from unlora.data.names import Name, Vocabulary, detect_names, texts_about_others
from unlora.data.sources import Record, questions_of, row_text

logger = logging.getLogger(__name__)
# The number of detected names that are logged.
_SHOWN = 10
# The number of rows in which a phrase must occur to count as the name of a person in the retain set.
MIN_ROWS = 2


def detected_names(rows: Sequence[Record], retain_rows: Sequence[Record]) -> list[Name]:
    """Return the names that the rows are about, and log them so that the user can correct them."""
    names = names_of(rows, retain_rows)
    words = ", ".join(" ".join(name) for name in names[:_SHOWN]) or "nobody"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    logger.warning("the forget set seems to be about %s%s; --forget_names names others", words, more)
    return names


def names_of(rows: Sequence[Record], retain_rows: Sequence[Record]) -> list[Name]:
    """Return the names that the forget rows are about.

    Three kinds of names are considered in this order, each only for the rows without a name of an earlier kind:

    1. names that do not occur in the retain set, and that a question or plain text contains;
    2. names in questions that recur in the questions of the retain set, because a request may concern only some of the
       rows about a person;
    3. names that only answers contain, and that do not occur in the retain set.
    """
    texts, others = (list(map(row_text, some)) for some in (rows, retain_rows))
    own = detect_names(texts, others)
    asked = [" ".join(questions_of([row])) or text for row, text in zip(rows, texts, strict=True)]
    # In a single row every capitalised word is as frequent as a name, so there a name needs two words.
    names = covering_names(texts, _named([name for name in own if len(name) > 1 or len(rows) > 1], asked))
    left = _about_others(rows, names, others)
    if left:
        names += covering_names(list(map(row_text, left)), _shared_names(left, retain_rows))
        names += covering_names(list(map(row_text, _about_others(rows, names, others))), own)
    return names


def _about_others(rows: Sequence[Record], names: Sequence[Name], others: Sequence[str]) -> list[Record]:
    """Return the rows that contain none of the names, and no part of one that is unknown to the texts about others."""
    left = set(texts_about_others(list(map(row_text, rows)), names, vocabulary_without(names, others)))
    return [row for row in rows if row_text(row) in left]


def _shared_names(rows: Sequence[Record], retain_rows: Sequence[Record]) -> list[Name]:
    """Return the names of two or more words that recur in the questions of both sets together, and occur in `rows`."""
    asked = [question for row in (*rows, *retain_rows) for question in questions_of([row])]
    recurring = [name for name in detect_names(asked, (), MIN_ROWS) if len(name) > 1]
    return _named(covering_names(asked, recurring), questions_of(rows))


def _named(names: Sequence[Name], texts: Sequence[str]) -> list[Name]:
    """Return the names that at least one of the texts contains."""
    return [name for name in names if any(" ".join(name) in text for text in texts)]


def vocabulary_without(names: Sequence[Name], texts: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of the texts that contain none of the names."""
    return Vocabulary.of(texts_without(names, texts))


def texts_without(names: Sequence[Name], texts: Sequence[str]) -> list[str]:
    """Return the texts that contain none of the names."""
    return [text for text in texts if not _named(names, [text])]


def covering_names(texts: Sequence[str], names: Sequence[Name]) -> list[Name]:
    """Select the names that the rows are about from all names that occur in them.

    This is a greedy set cover: the next name is the most frequent one in the rows that contain none of the names so
    far. Titles and places recur too, but mostly in rows that also name a person, so they are not selected.
    """
    left, chosen = set(range(len(texts))), []
    holding = {name: {place for place, text in enumerate(texts) if " ".join(name) in text} for name in names}
    while left and holding:
        best = max(holding, key=lambda name: (len(holding[name] & left), len(name)))
        if not holding[best] & left:
            break
        chosen.append(best)
        left -= holding.pop(best)
    return chosen
