"""How much of a text a model knows by heart: pure functions of which labels it predicts, [tokens] of one example.

`matches` says of each labelled token whether it is the model's likeliest one, given all true tokens before it. All
labels count. Where an example ends with a labelled end token, to stop there is part of what is known by heart; where it
does not (a conversation cut at `max_length`, a piece of a long text), its last token is one like the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlora.common.errors import InputError, Problem


def exact_memorisation(matches: ArrayLike) -> float:
    """Share of the labelled tokens that are the likeliest ones, in [0, 1] (Tirumala et al. 2022, arXiv 2205.10770).

    Raises:
        InputError: no tokens.
    """
    return float(_matches(matches).mean())


def extraction_strength(matches: ArrayLike) -> float:
    """1 − k/|y|, with k the fewest first tokens that must be given for greedy decoding to produce all others.

    1 if none is needed, 0 if the last token is not predicted even from all others (Carlini et al. 2021,
    arXiv 2012.07805; as a share of the labels, Wang et al. 2025, https://openreview.net/forum?id=wUtCieKuQU).

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
        raise InputError(Problem("matches", f"shape {array.shape}", "needs one row of tokens", "give at least one"))
    return array
