"""Forget losses: what is minimised so that the labelled tokens of the forget set are forgotten."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlora.forward import LabelledTokens, upcast


def gradient_ascent(out: LabelledTokens) -> Tensor:
    """−NLL/|y|, averaged over the batch's labelled tokens: mean log p(y_t). Unbounded below (arXiv 2401.06121)."""
    return out.logp.mean()


def inverted_hinge(out: LabelledTokens) -> Tensor:
    """mean_t 1 + p(y_t) − max_{v≠y_t} p(v), in [0, 2] (Cha et al. 2025, arXiv 2408.06621, inverted hinge loss).

    Lowers the true token's probability just below that of the runner-up and has no reason to go on, unlike ascent.
    """
    probabilities = upcast(out.logits).softmax(-1)
    true = probabilities.gather(1, out.targets[:, None])[:, 0]
    runner_up = probabilities.scatter(1, out.targets[:, None], -torch.inf).amax(1)
    return (1 + true - runner_up).mean()


def negative_preference(out: LabelledTokens, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))), sums over the tokens of y_i (NPO, arXiv 2404.05868).

    Ascent whose weight falls as an example is forgotten. β → 0 is gradient ascent (up to a constant).
    """
    assert out.ref_logp is not None
    return -2 / beta * F.logsigmoid(-beta * (out.example_logp - out.ref_logp)).mean()
