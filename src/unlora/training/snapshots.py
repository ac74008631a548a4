"""Copies of the trainable parameters, for restoring an earlier state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trainable parameters."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}


@torch.no_grad()
def restore(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the parameters that `weights` contains to its values."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)
