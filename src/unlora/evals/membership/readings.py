"""Compute memorisation and membership scores from an evaluation log, with our definitions or open-unlearning's.

For each example of the forget and the holdout set, a log has the loss of every labelled token, the mean and standard
deviation of log p(v) over the model's prediction, and whether the label was the most likely token. All scores are
computed from these, for any k of Min-K%, so the model need not be evaluated again for another definition:

- `unlora`: all labels count. If the last one is an end token, knowing where to stop is part of knowing the answer.
- `open-unlearning`: the last label is left out of exact memorisation, extraction strength, Min-K% and Min-K%++;
  extraction strength never reaches 0; the variance in Min-K%++ is at least 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlora.evals.membership import scores as membership
from unlora.evals.membership.memorisation import exact_memorisation, extraction_strength
from unlora.evals.metrics import Values

if TYPE_CHECKING:
    from unlora.evals.scoring import TokenScores

Reading = Literal["unlora", "open-unlearning"]
# The columns of a log that the scores are computed from.
TOKEN_COLUMNS = ("gt_token_loss", "gt_token_mean", "gt_token_std", "gt_token_match", "gt_zlib_bytes")
# Significant digits of the numbers in these columns: differences between losses of 1e-5 decide an AUC.
_DIGITS = 6
# open-unlearning bounds the variance of log p(v) in Min-K%++ from below.
_THEIR_LEAST_STD = 1e-3


def token_columns(tokens: Sequence[TokenScores], zlib_bytes: Sequence[int]) -> dict[str, list[Any]]:
    """Return the columns of a log for these examples, [examples] each.

    Args:
        tokens: the token scores of each example.
        zlib_bytes: the `zlib_size` of each labelled text.
    """

    def short(values: NDArray[np.floating]) -> list[float]:
        return [float(f"{value:.{_DIGITS}g}") for value in values]

    return {
        "gt_token_loss": [short(-scores.logp) for scores in tokens],
        "gt_token_mean": [short(scores.mean) for scores in tokens],
        "gt_token_std": [short(scores.std) for scores in tokens],
        "gt_token_match": [scores.matches.astype(int).tolist() for scores in tokens],
        "gt_zlib_bytes": list(zlib_bytes),
    }


def example_scores(columns: Mapping[str, Mapping[str, Any]], reading: Reading, percent: int) -> dict[str, Values]:
    """Return memorisation and membership scores of a set, by name [examples]; empty if the log lacks the tokens.

    Args:
        columns: the columns of the set in the log.
        reading: whose definitions are used.
        percent: k of Min-K% and Min-K%++.

    Returns:
        `exact_memorisation`, `extraction_strength`, `loss`, `zlib`, `min_k` and `min_k_plus_plus`. The higher the score
        of an attack, the more likely it is that the example was in the training data. If an example has a single label
        and it is left out, exact memorisation is NaN, and the other scores that leave it out are 0.
    """
    if not set(TOKEN_COLUMNS) <= columns.keys():
        return {}
    indices = sorted(columns["gt_token_loss"], key=int)
    loss, mean, std, match, size = (columns[name] for name in TOKEN_COLUMNS)
    rows = [token_scores(-np.asarray(loss[i]), mean[i], std[i], match[i], size[i], reading, percent) for i in indices]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def token_scores(
    logp: ArrayLike,
    mean: ArrayLike,
    std: ArrayLike,
    matches: ArrayLike,
    zlib_bytes: int,
    reading: Reading,
    percent: int,
) -> dict[str, float]:
    """Return the scores of one example, as `example_scores`.

    Args:
        logp, mean, std, matches: [tokens] each, as in `unlora.evals.scoring.TokenScores`.
        zlib_bytes: the `zlib_size` of the labelled text.
        reading: whose definitions are used.
        percent: k of Min-K% and Min-K%++.
    """
    logp, mean, std, matches = (np.asarray(column, dtype=np.float64) for column in (logp, mean, std, matches))
    whole = {"loss": membership.loss_score(logp), "zlib": membership.zlib_score(logp, zlib_bytes)}
    theirs = reading == "open-unlearning"
    kept = len(logp) - 1 if theirs else len(logp)
    if not kept:
        nothing = {"extraction_strength": 0.0, "min_k": 0.0, "min_k_plus_plus": 0.0}
        return {**whole, **nothing, "exact_memorisation": np.nan}
    spread = np.maximum(std[:kept], _THEIR_LEAST_STD) if theirs else std[:kept]
    standardised = membership.standardised(logp[:kept], mean[:kept], spread)
    strength = extraction_strength(matches[:kept])
    return {
        "exact_memorisation": exact_memorisation(matches[:kept]),
        "extraction_strength": max(strength, 1 / kept) if theirs else strength,
        **whole,
        "min_k": membership.min_k_score(logp[:kept], percent),
        "min_k_plus_plus": membership.min_k_score(standardised, percent),
    }
