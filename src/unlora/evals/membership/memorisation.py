"""Measure how much of a text a model knows by heart, as pure functions of which labels of an example it predicts.

`matches` is [tokens]: whether each labelled token is the model's most likely one, given all true tokens before it. All
labels count. If an example ends with a labelled end token, knowing where to stop is part of knowing the text by heart.
Otherwise (a conversation cut at `max_length`, a chunk of a long text), the last token counts like the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlora.common.errors import InputError, Problem


def exact_memorisation(matches: ArrayLike) -> float:
    """Return the share of labels that are the most likely tokens, in [0, 1] (Tirumala et al. 2022, arXiv 2205.10770).

    Raises:
        InputError: no tokens.
    """
    return float(_matches(matches).mean())


def extraction_strength(matches: ArrayLike) -> float:
    """Return 1 − k/|y|, where k is the smallest number of first tokens from which greedy decoding produces the rest.

    It is 1 if no token has to be given, and 0 if the last token is not predicted even from all others (Carlini et al.
    2021, arXiv 2012.07805; as a share of the labels, Wang et al. 2025, https://openreview.net/forum?id=wUtCieKuQU).

    Raises:
        InputError: no tokens.
    """
    hits = _matches(matches)
    wrong = np.flatnonzero(~hits)
    needed = wrong[-1] + 1 if wrong.size else 0
    return float(1 - needed / len(hits))


def _matches(matches: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(matches, dtype=np.bool_)
    if array.ndim != 1 or not array.size:
        raise InputError(
            Problem(
                "matches", f"shape {array.shape}", "it must be a one-dimensional array of tokens", "give at least one"
            )
        )
    return array
