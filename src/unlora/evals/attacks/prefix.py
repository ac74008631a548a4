"""Prefix: the beginning of the answer, or of a chunk of text, is given away, and the model goes on.

Carlini et al., ICLR 2023 (https://arxiv.org/abs/2202.07646).
"""

from __future__ import annotations

from typing import Any

from unlora.data import Example
from unlora.evals.attacks.interface import (
    Case,
    Materials,
    UnavailableError,
    answer_places,
    encode_rows,
    going_on,
    without_labels,
)
from unlora.evals.scoring import end_tokens
from unlora.settings import AttackConfig


def cases(model: Any, materials: Materials, config: AttackConfig) -> list[Case]:
    """Shares of each answer's tokens that are given; answers of a single token are left out: nothing would remain."""
    ends = end_tokens(materials.text_format)
    examples = encode_rows(materials.forget, materials.text_format)
    long = [example for example in examples if len(answer_places(example, ends)) > 1]
    if not long:
        raise UnavailableError("every forget answer is a single token", "give longer answers")
    found = []
    for percent in config.prefix_percent:
        remainders = [remainder(example, percent, ends) for example in long]
        found.append(Case(f"{percent:g} %", going_on(remainders, materials)))
    return found


def remainder(example: Example, percent: float, ends: set[int]) -> Example:
    """The example without labels on the first `percent` of the answer's n > 1 tokens: at least 1, at most n−1."""
    places = answer_places(example, ends)
    given = min(max(round(len(places) * percent / 100), 1), len(places) - 1)
    return without_labels(example, places[given])
