"""Prefix: the model is given the beginning of the answer, or of a chunk of text, and continues it.

Carlini et al., ICLR 2023 (https://arxiv.org/abs/2202.07646).
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from unlora.data import Example
from unlora.evals.attacks.interface import (
    Case,
    Materials,
    UnavailableError,
    answer_places,
    continuation_probe,
    encode_rows,
    without_labels,
)
from unlora.settings import AttackConfig


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return a case for each share of the answer that the model is given. Answers of one token are skipped."""
    ends = materials.text_format.end_tokens
    examples = encode_rows(materials.forget, materials.text_format)
    long = [example for example in examples if len(answer_places(example, ends)) > 1]
    if not long:
        raise UnavailableError("every forget answer is a single token", "give longer answers")
    found = []
    for percent in config.prefix_percent:
        remainders = [remainder(example, percent, ends) for example in long]
        found.append(Case(f"{percent:g} %", continuation_probe(remainders, materials)))
    return found


def remainder(example: Example, percent: float, ends: Collection[int]) -> Example:
    """Return the example without labels on the first `percent` % (between 1 and n−1) of the answer's n > 1 tokens."""
    places = answer_places(example, ends)
    given = min(max(round(len(places) * percent / 100), 1), len(places) - 1)
    return without_labels(example, places[given])
