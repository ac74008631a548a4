"""Predictions of a teacher for the answers to forget, in the form in which the loss gets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Lower bound on the probability of all tokens that are not kept: in float32, 1 − Σ is not more accurate than this.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Lesson:
    """A teacher's predictions for m labelled tokens of one example or of a batch.

    Args:
        places: [m] indices of these tokens among the labelled tokens. The others, such as names, are not taught.
        ids: [m, kept] the most likely tokens, including the labelled token.
        logp: [m, kept + 1] their log-probabilities, and the log-probability of all other tokens together, float32.
        true_logp: [m] log-probability of the labelled token, float32.
    """

    places: Tensor
    ids: Tensor
    logp: Tensor
    true_logp: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def with_others(logp: Tensor) -> Tensor:
    """Append the log-probability of all remaining tokens together.

    Args:
        logp: [m, kept] log-probabilities of some tokens.

    Returns:
        [m, kept + 1].
    """
    others = (1 - logp.exp().sum(-1, keepdim=True)).clamp(min=_FLOOR).log()
    return torch.cat([logp, others], -1)


def join_lessons(lessons: Sequence[Lesson], tokens: Sequence[int]) -> Lesson:
    """Concatenate the lessons of a batch. `places` then index the labelled tokens of all its examples.

    Args:
        lessons: the lesson of each example, in the order of the batch.
        tokens: the number of labelled tokens of each example.
    """
    starts = torch.tensor([0, *tokens]).cumsum(0).tolist()
    places = torch.cat([lesson.places + start for lesson, start in zip(lessons, starts, strict=False)])
    names = ("ids", "logp", "true_logp")
    return Lesson(places, *(torch.cat([getattr(lesson, name) for lesson in lessons]) for name in names))
