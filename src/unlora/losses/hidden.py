"""Losses of hidden states: RMU, representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlora.models.forward import HiddenStates
from unlora.models.log_probabilities import upcast


def misdirection(out: HiddenStates, steering_coeff: float = 6.5, seed: int = 42) -> Tensor:
    """mean (h − c·u/‖u‖)² over labelled positions and dimensions, at least 0 (RMU, arXiv 2403.03218, forget loss).

    Pulls the hidden states to one random direction, entries of u uniform in [0, 1), from which later layers cannot
    tell what was said.

    Args:
        out: the hidden states.
        steering_coeff: c, the length of the vector that they are pulled to; the paper takes 6.5 for Zephyr-7B.
        seed: of u.
    """
    states = upcast(out.states)
    direction = torch.rand(states.shape[-1], generator=torch.Generator().manual_seed(seed)).to(states)
    return F.mse_loss(states, (steering_coeff * direction / direction.norm()).expand_as(states))


def hidden_error(out: HiddenStates) -> Tensor:
    """mean (h − h_ref)² over labelled positions and dimensions, at least 0 (RMU, arXiv 2403.03218, retain loss)."""
    assert out.ref_states is not None
    return F.mse_loss(upcast(out.states), upcast(out.ref_states))
