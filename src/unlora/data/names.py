"""Detect the names that the forget rows are about, and replace them by invented names.

A name is a capitalised phrase that recurs in the forget set and never occurs in the retain set, such as a person's full
name. In scripts without capital letters names cannot be detected, so the user has to give them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# The words of a name in their order, such as ("Ada", "de", "Vries").
Name = tuple[str, ...]

_WORD = re.compile(r"[^\W\d_]\w*(?:[-'’.][^\W\d_]\w*)*")
_POSSESSIVE = re.compile(r"['’]s?$")
# Lower-case words that occur inside a name.
_PARTICLES = frozenset(("al", "bin", "da", "de", "del", "della", "den", "der", "di", "dos", "du", "el", "ibn", "la"))
_PARTICLES |= {"le", "van", "von", "y"}
_LONGEST = 5
# Words that begin questions. A small dataset may contain them only there, with a capital letter.
_QUESTION_WORDS = frozenset(("are", "can", "could", "did", "do", "does", "had", "has", "have", "how", "is", "should"))
_QUESTION_WORDS |= {"was", "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "would"}

# Parts of invented names if the data have too few names to combine.
_FIRST = (
    "Adam",
    "Anna",
    "Boris",
    "Clara",
    "Daniel",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Leo",
)
_LAST = (
    "Abel",
    "Brandt",
    "Costa",
    "Dahl",
    "Engel",
    "Ferro",
    "Grant",
    "Holm",
    "Ivers",
    "Jensen",
    "Keller",
    "Lund",
    "Moran",
)
BUILT_IN = tuple((first, last) for first in _FIRST for last in _LAST)


@dataclass
class Vocabulary:
    """Counts of the words and phrases in a set of rows.

    Args:
        lower: number of occurrences of each lower-case word.
        capitalised: number of rows that contain each capitalised word.
        phrases: number of rows that contain each capitalised phrase.
    """

    lower: Counter[str] = field(default_factory=Counter)
    capitalised: Counter[str] = field(default_factory=Counter)
    phrases: Counter[Name] = field(default_factory=Counter)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """Count the words and phrases of some rows."""
        found = cls()
        for text in texts:
            found.lower.update(word for word, _, _ in _words(text) if not word[0].isupper())
            runs = list(_capitalised_runs(text))
            found.capitalised.update({word for run in runs for word in run if word[0].isupper()})
            found.phrases.update({phrase for run in runs for phrase in _phrases_of(run)})
        return found

    def knows(self, word: str) -> bool:
        """Return whether the word occurs, capitalised or in lower case."""
        return bool(self.capitalised[word] or self.lower[word.lower()])


def detect_names(texts: Sequence[str], others: Sequence[str], least_rows: int = 2) -> list[Name]:
    """Return the capitalised phrases that recur in `texts` and never occur in `others`, the most frequent first.

    If phrases contain each other, only the longest is a name. Phrases that begin or end with a question word, or with a
    word that also occurs in lower case, are skipped.

    Args:
        texts: the rows to search, each with its question and answer in one text.
        others: rows about other people.
        least_rows: the minimum number of rows with the phrase, or all rows if there are fewer.
    """
    own, other = Vocabulary.of(texts), Vocabulary.of(others)
    least = min(least_rows, len(texts))

    def common(word: str) -> bool:
        lower = word.lower()
        return lower in _QUESTION_WORDS or bool(own.lower[lower] or other.lower[lower])

    found = [
        phrase
        for phrase, rows in own.phrases.items()
        if rows >= least and not other.phrases[phrase] and not common(phrase[0]) and not common(phrase[-1])
    ]
    names: list[Name] = []
    for phrase in sorted(found, key=lambda phrase: (-len(phrase), phrase)):
        if not any(_contains(longer, phrase) for longer in names):
            names.append(phrase)
    return sorted(names, key=lambda name: (-own.phrases[name], name))


def invent_names(like: Sequence[Name], count: int, seed: int, avoid: Collection[Name] = ()) -> list[Name]:
    """Draw names that do not occur in the data: the first words of one known name with the last word of another.

    Args:
        like: known names. Those with two or more words are combined, or built-in names if there are fewer than three.
        count: the number of names to draw.
        seed: the seed of the draw.
        avoid: further names that must not be drawn.

    Raises:
        ValueError: there are fewer combinations than `count`.
    """
    known = [name for name in like if len(name) > 1]
    known = known if len(known) > 2 else list(BUILT_IN)
    pairs = [(*first[:-1], last[-1]) for first in known for last in known]
    taken = {*like, *avoid}
    new = list(dict.fromkeys(name for name in pairs if name not in taken))
    if len(new) < count:
        new += [name for name in BUILT_IN if name not in taken and name not in new]
    return random.Random(seed).sample(new, count)


def replace_names(text: str, substitutes: Mapping[Name, Name], known: Vocabulary) -> str:
    """Replace names in a text.

    Parts of a name ("Hsiao" of "Hsiao Yun-Hwa") are replaced too, unless one of their words occurs in `known`.

    Args:
        text: any text.
        substitutes: {name: its replacement}.
        known: the vocabulary of rows about other people.
    """
    parts = {part: new for name, new in substitutes.items() for part, new in _parts(name, new, known)}
    if not parts:
        return text
    return re.sub(_any_of(parts), lambda found: " ".join(parts[tuple(found[0].split())]), text)


def texts_about_others(texts: Sequence[str], names: Sequence[Name], known: Vocabulary) -> list[str]:
    """Return the texts in which `replace_names` would find none of the names and no part of one.

    Args:
        texts: any texts.
        names: the names to look for.
        known: the vocabulary of rows about other people.
    """
    parts = [part for name in names for part, _ in _parts(name, name, known)]
    if not parts:
        return list(texts)
    named = re.compile(_any_of(parts))
    return [text for text in texts if not named.search(text)]


def _any_of(phrases: Iterable[Name]) -> str:
    """Return a regular expression that finds the phrases as whole words, the longest first."""
    longest_first = sorted(phrases, key=lambda words: -sum(map(len, words)))
    either = "|".join(r"\s+".join(map(re.escape, words)) for words in longest_first)
    return rf"(?<!\w)(?:{either})(?!\w)"


def _parts(name: Name, new: Name, known: Vocabulary) -> Iterator[tuple[Name, Name]]:
    """Yield the name and each part that identifies it, with their replacements.

    A part at the end of the name is replaced by the last word of the new name, any other part by its first word.
    """
    yield name, new
    for start in range(len(name)):
        for stop in range(start + 1, len(name) + 1):
            part = name[start:stop]
            telling = any(word[0].isupper() for word in part) and not any(map(known.knows, part))
            if part != name and telling:
                yield part, new[-1:] if stop == len(name) else new[:1]


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each word without a possessive ending, with its start and end."""
    for found in _WORD.finditer(text):
        word = _POSSESSIVE.sub("", found[0])
        if word:
            yield word, found.start(), found.start() + len(word)


def _capitalised_runs(text: str) -> Iterator[Name]:
    """Yield the longest phrases of capitalised words separated by whitespace, with particles allowed inside."""
    run: list[str] = []
    end = 0
    for word, start, stop in _words(text):
        joined = bool(run) and not text[end:start].strip()
        if not joined or not (word[0].isupper() or word in _PARTICLES):
            yield from _without_trailing_particles(run)
            run = []
        if word[0].isupper() or run:
            run.append(word)
        end = stop
    yield from _without_trailing_particles(run)


def _without_trailing_particles(run: list[str]) -> Iterator[Name]:
    while run and not run[-1][0].isupper():
        run = run[:-1]
    if run:
        yield tuple(run)


def _phrases_of(run: Name) -> Iterator[Name]:
    for start in range(len(run)):
        for stop in range(start + 1, min(len(run), start + _LONGEST) + 1):
            phrase = run[start:stop]
            if phrase[0][0].isupper() and phrase[-1][0].isupper():
                yield phrase


def _contains(longer: Name, phrase: Name) -> bool:
    return any(longer[start : start + len(phrase)] == phrase for start in range(len(longer) - len(phrase) + 1))
