"""What a teacher predicts for the answers to forget, as it travels from the teacher to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Least probability of all tokens that are not kept: 1 − Σ is no more exact than that in float32.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Lesson:
    """A teacher's predictions of m labelled tokens, of one example or of a batch.

    Args:
        places: [m] which of the labelled tokens, counted from 0. The others, such as names, are not taught.
        ids: [m, kept] the likeliest tokens, and the labelled token among them.
        logp: [m, kept + 1] their log-probabilities, and that of all other tokens together, float32.
        true_logp: [m] log-probability of the labelled token, float32.
    """

    places: Tensor
    ids: Tensor
    logp: Tensor
    true_logp: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def with_others(logp: Tensor) -> Tensor:
    """Append the log-probability of all tokens that are not among those given.

    Args:
        logp: [m, kept] log-probabilities of some tokens.

    Returns:
        [m, kept + 1].
    """
    others = (1 - logp.exp().sum(-1, keepdim=True)).clamp(min=_FLOOR).log()
    return torch.cat([logp, others], -1)


def join_lessons(lessons: Sequence[Lesson], tokens: Sequence[int]) -> Lesson:
    """Return the lesson of a batch: `places` then count through the labelled tokens of all its examples.

    Args:
        lessons: of each example, in the order of the batch.
        tokens: how many labelled tokens each has.
    """
    starts = torch.tensor([0, *tokens]).cumsum(0).tolist()
    places = torch.cat([lesson.places + start for lesson, start in zip(lessons, starts, strict=False)])
    names = ("ids", "logp", "true_logp")
    return Lesson(places, *(torch.cat([getattr(lesson, name) for lesson in lessons]) for name in names))
