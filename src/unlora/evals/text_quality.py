"""Measure whether generated answers are still good text, and whether they still give the fact away.

Both are measured on the answers in an evaluation log, so this can be done later for any log, including the retrained
model's.

*Broken.* The original model scores each answer as the answer to an empty question. An answer counts as broken if the
whole of it or its worst few tokens are less likely than those of nearly all reference answers, which are scored in the
same way. It also counts as broken if it repeats itself more than nearly all reference answers, or if it is empty.

*Given away.* The fact of a row consists of the words in the right answer that cannot be guessed: those that are neither
in the question nor in one of the row's wrong answers. If the row has no wrong answers, the fact consists of the words
that are rarest in the answers of the retain set, because the others could occur in any answer. An answer gives the fact
away if it contains all of these words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unlora.common.words import rarest

if TYPE_CHECKING:
    from torch import nn

    from unlora.data import TextFormat
    from unlora.data.sources import Record

# A text is broken if a measure of it is beyond this quantile of the reference answers.
_QUANTILE = 0.99
# Length of an answer's worst stretch in tokens: that of a short error, but longer than the surprise at one rare word.
_STRETCH = 3
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")


def text_measures(
    model: nn.Module, texts: Sequence[str], text_format: TextFormat, batch_size: int | None = None
) -> NDArray[np.float64]:
    """Return three measures of how bad each text is.

    Args:
        model: the original model. It is left as it was found.
        texts: answers. The measures of empty ones are infinite.
        text_format: how texts become tokens.
        batch_size: number of texts in a forward pass.

    Returns:
        [texts, 3]: the mean NLL of the tokens as the answer to an empty question, the mean NLL of the worst three
        consecutive tokens, both in nats, and the share of repeated 3-grams.
    """
    from unlora.evals.scoring import answer_examples, score_tokens

    written = [place for place, text in enumerate(texts) if text.strip()]
    found = np.full((len(texts), 3), np.inf)
    examples = answer_examples([("", texts[place]) for place in written], text_format)
    for place, scores in zip(written, score_tokens(model, examples, text_format, batch_size), strict=True):
        nll = -scores.logp.astype(np.float64)
        stretch = min(_STRETCH, len(nll))
        worst = np.convolve(nll, np.ones(stretch) / stretch, "valid").max()
        found[place] = nll.mean(), worst, repeated_share(texts[place])
    return found


def broken(measures: NDArray[np.float64], references: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which texts are broken, [texts].

    Args:
        measures: `text_measures` of generated answers, [texts, 3].
        references: `text_measures` of reference answers, [references, 3].
    """
    # Each measure gets a third of the false positives that the quantile allows (Bonferroni).
    limits = np.quantile(references, 1 - (1 - _QUANTILE) / references.shape[1], axis=0, method="higher")
    found: NDArray[np.bool_] = (measures > limits).any(axis=1)
    return found


def repeated_share(text: str) -> float:
    """Return the share of 3-grams of words and punctuation marks that occur earlier in the text, too."""
    parts = re.findall(r"\w+|[^\w\s]", text.lower())
    triples = list(zip(parts, parts[1:], parts[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def facts(rows: Sequence[Record], retain: Sequence[Record]) -> list[frozenset[str]]:
    """Return the words of each row's fact in lower case. The fact is empty if every word of the answer can be guessed.

    Args:
        rows: rows with question and answer, and optionally perturbed_answer, a list of wrong answers.
        retain: rows of the retain set, which show what words are common. Other rows of the forget set are not used for
            this, because they may state the same fact in other words.
    """
    counts = Counter(word for row in retain for word in _words(str(row["answer"])))

    def fact(row: Record) -> frozenset[str]:
        own = _words(str(row["answer"])) - _words(str(row["question"]))
        if wrong := row.get("perturbed_answer"):
            return own - _words(" ".join(map(str, wrong)))
        return rarest(own, counts)

    return list(map(fact, rows))


def fact_recall(texts: Sequence[str], known: Sequence[frozenset[str]]) -> NDArray[np.float64]:
    """Return the share of each fact's words that the text contains, [texts]; NaN for rows without a fact."""
    return np.array(
        [len(fact & _words(text)) / len(fact) if fact else np.nan for text, fact in zip(texts, known, strict=True)]
    )


def text_columns(
    columns: Mapping[str, Any],
    rows: Sequence[Record],
    retain: Sequence[Record],
    original: nn.Module,
    text_format: TextFormat,
    batch_size: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the columns that `summarise_text` needs of one set in a log.

    Args:
        columns: the columns of the set, with generated_text.
        rows: the rows of the set.
        retain: rows of the retain set.
        original: the original model. It is left as it was found.
        text_format: how texts become tokens.
        batch_size: number of texts in a forward pass.
    """
    texts = columns["generated_text"]
    answers, references = ([str(text[place]) for text in texts.values()] for place in (1, 2))
    measures = text_measures(original, answers + references, text_format, batch_size)
    found = {
        "answer_measures": measures[: len(answers)],
        "reference_measures": measures[len(answers) :],
        "fact_recall": fact_recall(answers, facts(rows[: len(answers)], retain)),
    }
    # JSON has neither infinity nor NaN.
    return {name: dict(zip(texts, _jsonable(values), strict=True)) for name, values in found.items()}


def _jsonable(values: NDArray[np.float64]) -> list[Any]:
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return list(found.tolist())


def reference_measures(log: Mapping[str, Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return the measures of the reference answers of all sets in a log, [references, 3].

    With the reference answers of one set alone, text that is usual in the other sets would count as broken.
    """
    columns = [_measures(columns["reference_measures"]) for columns in log.values() if "reference_measures" in columns]
    return np.concatenate(columns) if columns else np.empty((0, 3))


def summarise_text(columns: Mapping[str, Mapping[str, Any]], references: NDArray[np.float64]) -> dict[str, float | int]:
    """Count the broken answers of one set in a log and the answers that give the fact away, and average the measures.

    Args:
        columns: the columns of the set. Results that need other columns are left out.
        references: from `reference_measures`.

    Returns:
        "answers"; "broken" with "answer_nll" and "reference_nll", the mean NLL of the texts in nats; and "facts",
        "given_away" and "fact_recall".
    """
    found: dict[str, float | int] = {}
    judged = judged_answers(columns, references)
    if "broken" in judged:
        answers = _measures(columns["answer_measures"])
        written = np.isfinite(answers[:, 0])
        found["answers"] = len(answers)
        found["broken"] = int(judged["broken"].sum())
        found["reference_nll"] = float(_measures(columns["reference_measures"])[:, 0].mean())
        if written.any():
            found["answer_nll"] = float(answers[written, 0].mean())
    if "given_away" in judged:
        recall = _recall(columns["fact_recall"])
        known = recall[~np.isnan(recall)]
        found |= {"facts": len(known), "given_away": int(judged["given_away"].sum())}
        if len(known):
            found["fact_recall"] = float(known.mean())
    return found


def judged_answers(
    columns: Mapping[str, Mapping[str, Any]], references: NDArray[np.float64]
) -> dict[str, NDArray[np.bool_]]:
    """Return which answers of one set in a log are "broken", and which have "given_away" the fact, [answers] each.

    Args:
        columns: the columns of the set. Results that need other columns are left out.
        references: from `reference_measures`.
    """
    found = {}
    if "answer_measures" in columns:
        found["broken"] = broken(_measures(columns["answer_measures"]), references)
    if "fact_recall" in columns:
        found["given_away"] = _recall(columns["fact_recall"]) == 1
    return found


def _recall(column: Mapping[str, float | None]) -> NDArray[np.float64]:
    """Return a column of a log as an array. None stands for a row without a fact and becomes NaN."""
    return np.array([np.nan if value is None else value for value in column.values()], dtype=np.float64)


def _measures(column: Mapping[str, Sequence[float | None]]) -> NDArray[np.float64]:
    """Return a column of a log as an array. None stands for infinity."""
    return np.array([[np.inf if value is None else value for value in row] for row in column.values()])


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(text))
