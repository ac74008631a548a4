"""Losses on hidden states: RMU, representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218).

Shapes: `states` and `ref_states` are [tokens, hidden], the output of one decoder layer at the labelled positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlora.losses.interface import Loss
from unlora.models.forward import check_layer, hidden_states
from unlora.models.log_probabilities import upcast


def misdirection(states: Tensor, steering_coeff: float = 6.5, seed: int = 42) -> Tensor:
    """mean (h − c·u/‖u‖)² over labelled positions and dimensions, at least 0 (RMU's forget loss).

    This pulls all hidden states towards one random vector c·u/‖u‖, which tells later layers nothing about the input.
    The entries of u are uniform in [0, 1).

    Args:
        states: h.
        steering_coeff: c, the length of this vector. The paper uses 6.5 for Zephyr-7B.
        seed: the seed of u.
    """
    states = upcast(states)
    direction = torch.rand(states.shape[-1], generator=torch.Generator().manual_seed(seed)).to(states)
    return F.mse_loss(states, (steering_coeff * direction / direction.norm()).expand_as(states))


def hidden_error(states: Tensor, ref_states: Tensor) -> Tensor:
    """mean (h − h_ref)² over labelled positions and dimensions, at least 0 (RMU's retain loss)."""
    return F.mse_loss(upcast(states), upcast(ref_states))


_PAPER = "Li et al. 2024 (arXiv 2403.03218)"
RMU = Loss(
    misdirection,
    "mean_t (h_t − c·u/‖u‖)² at the output of decoder layer ℓ",
    _PAPER,
    retain="hidden_mse",
    forward=hidden_states,
    check=check_layer,
)
HIDDEN_MSE = Loss(hidden_error, "mean_t (h_t − h_ref,t)² at the same layer", _PAPER, forward=hidden_states, nats=False)
