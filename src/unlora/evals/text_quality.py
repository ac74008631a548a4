"""Are the answers still good text, and do they still give the fact away?

Both are measured on the answers in an evaluation log, so any log can be measured later, the retrained model's too.

*Broken.* The original model reads each answer in place of the answer to an empty question. Text that it finds less
likely than nearly all reference answers, read in the same way, is not what it would ever write. An answer counts as
broken if that holds for the whole of it or for its worst few tokens, if it repeats itself more than nearly all
reference answers do, or if it is empty.

*Given away.* The fact of a row is what its answer says and nobody could guess: the words that are neither in the
question nor in one of the wrong answers beside it. Without wrong answers, it is the words that are rarest in the
answers of the retain set, since anybody might say the others. An answer gives the fact away if it contains all of
these words.
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

# Reference answers are the yardstick: a text is broken where it is beyond this quantile of them.
_QUANTILE = 0.99
# The worst stretch of an answer is so many tokens long: as long as a slip, and longer than one rare word is surprising.
_STRETCH = 3
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")


def text_measures(
    model: nn.Module, texts: Sequence[str], text_format: TextFormat, batch_size: int | None = None
) -> NDArray[np.float64]:
    """Return three measures of how bad each text is.

    Args:
        model: the original model; left as it was found.
        texts: answers. Empty ones are infinitely bad.
        text_format: how they become tokens.
        batch_size: texts in a forward pass.

    Returns:
        [texts, 3]: the mean NLL of the tokens as the answer to an empty question, that of the worst three tokens in a
        row, both in nats, and the share of repeated 3-grams.
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
        references: those of reference answers, [references, 3].
    """
    # Each measure gets a third of the texts that chance alone would put beyond the quantile (Bonferroni).
    limits = np.quantile(references, 1 - (1 - _QUANTILE) / references.shape[1], axis=0, method="higher")
    found: NDArray[np.bool_] = (measures > limits).any(axis=1)
    return found


def repeated_share(text: str) -> float:
    """The share of 3-grams of words and signs that have occurred in the text before."""
    parts = re.findall(r"\w+|[^\w\s]", text.lower())
    triples = list(zip(parts, parts[1:], parts[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def facts(rows: Sequence[Record], retain: Sequence[Record]) -> list[frozenset[str]]:
    """Return the words of each row's fact, in lower case; none where the answer says nothing of its own.

    Args:
        rows: with question and answer, and perhaps perturbed_answer, a list of wrong answers.
        retain: rows of the retain set, which tell what is said of others, too. Other rows of the forget set do not:
            they may say the same fact in other words.
    """
    holding = Counter(word for row in retain for word in _words(str(row["answer"])))

    def fact(row: Record) -> frozenset[str]:
        own = _words(str(row["answer"])) - _words(str(row["question"]))
        if wrong := row.get("perturbed_answer"):
            return own - _words(" ".join(map(str, wrong)))
        return rarest(own, holding)

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
    """Return what `summarise_text` reads of one set in a log.

    Args:
        columns: of the set, with generated_text.
        rows: that it is of.
        retain: rows of the retain set.
        original: the original model; left as it was found.
        text_format: how texts become tokens.
        batch_size: texts in a forward pass.
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
    """Return the measures of all reference answers in a log, [references, 3]: the yardstick of every set.

    The reference answers of one set alone would make what is usual in the others look odd.
    """
    columns = [_measures(columns["reference_measures"]) for columns in log.values() if "reference_measures" in columns]
    return np.concatenate(columns) if columns else np.empty((0, 3))


def summarise_text(columns: Mapping[str, Mapping[str, Any]], references: NDArray[np.float64]) -> dict[str, float | int]:
    """Return the counts and means of one set in a log: how many answers are broken, and how many give the fact away.

    Args:
        columns: of the set; what it lacks is not in the result.
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
        columns: of the set; what it lacks is not in the result.
        references: from `reference_measures`.
    """
    found = {}
    if "answer_measures" in columns:
        found["broken"] = broken(_measures(columns["answer_measures"]), references)
    if "fact_recall" in columns:
        found["given_away"] = _recall(columns["fact_recall"]) == 1
    return found


def _recall(column: Mapping[str, float | None]) -> NDArray[np.float64]:
    """A column of a log, in which None stands for a row without a fact."""
    return np.array([np.nan if value is None else value for value in column.values()], dtype=np.float64)


def _measures(column: Mapping[str, Sequence[float | None]]) -> NDArray[np.float64]:
    """A column of a log, in which None stands for infinity."""
    return np.array([[np.inf if value is None else value for value in row] for row in column.values()])


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(text))
