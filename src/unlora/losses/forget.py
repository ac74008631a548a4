"""Token-level forget losses: means over the labelled tokens of a batch, minimised in training.

Here y is a labelled token, z the logits that predict it, p = softmax(z), and sg(·) the stop-gradient operator. Shapes:
`logits` and `ref_logits` [tokens, vocabulary], `targets` and `logp` [tokens].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlora.losses.dual import dual_ascent
from unlora.losses.interface import Loss
from unlora.models.log_probabilities import upcast


def gradient_ascent(logp: Tensor) -> Tensor:
    """mean_t log p(y_t): the negative of the usual loss (TOFU, arXiv 2401.06121). It is unbounded below."""
    return logp.mean()


def inverted_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """mean_t (1 + p(y_t) − max_{v≠y_t} p(v)), in [0, 2] (IHL, Cha et al. 2025, arXiv 2408.06621).

    This lowers the true token's probability to just below that of the runner-up, and unlike gradient ascent no further.
    """
    probabilities = upcast(logits).softmax(-1)
    true = probabilities.gather(1, targets[:, None])[:, 0]
    runner_up = probabilities.scatter(1, targets[:, None], -torch.inf).amax(1)
    return (1 + true - runner_up).mean()


def weighted_ascent(logp: Tensor, beta: float = 1.0) -> Tensor:
    """mean_t sg(p(y_t))^β · log p(y_t), in [−1/(eβ), 0] (WGA, Wang et al. 2025, arXiv 2502.19301).

    This is gradient ascent whose weight falls with the token's probability. β = 0 is plain gradient ascent.
    """
    return (logp.detach().mul(beta).exp() * logp).mean()


def saturation_importance(logp: Tensor, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """mean_t sg(p(y_t)^β₁ · (1 − p(y_t))^β₂) · log p(y_t), at most 0 (SatImp, Yang et al. 2025, arXiv 2505.11953).

    This weights gradient ascent towards tokens that are neither forgotten already (p near 0) nor easy to predict
    (p near 1).
    """
    fixed = logp.detach()
    # −expm1(log p) is 1 − p without the cancellation that would leave only rounding errors near p = 1.
    weight = fixed.mul(beta1).exp() * (-torch.expm1(fixed)).pow(beta2)
    return (weight * logp).mean()


def cross_entropy_unlearning(logits: Tensor, targets: Tensor, example: Tensor, skip_first: int = 0) -> Tensor:
    """mean_t (−Σ_v q(v)·log p(v)), q = softmax(sg(z) with z_y = −∞), at least 0 (CE-U, Yang 2025, arXiv 2503.01224).

    The target is the model's own distribution without the true token. The gradient with respect to the true token's
    logit is p(y), so it vanishes as the token is forgotten.

    Args:
        logits: the logits at the labelled positions.
        targets: the labelled tokens.
        example: [tokens] the index of the row that each token belongs to, in ascending order.
        skip_first: the number of tokens at the beginning of each answer whose loss is set to 0. The paper's experiments
            skip one.
    """
    logits = upcast(logits)
    without_target = logits.detach().scatter(1, targets[:, None], -torch.inf).softmax(-1)
    losses = F.cross_entropy(logits, without_target, reduction="none")
    place = torch.arange(len(example), device=example.device) - torch.searchsorted(example, example)
    return losses[place >= skip_first].sum() / len(losses)


def adjusted_distillation(logits: Tensor, targets: Tensor, ref_logits: Tensor, beta: float = 10.0) -> Tensor:
    """mean_t (−Σ_v q(v)·log p(v)), q = softmax(z_ref − β·1_y), at least 0 (UnDIAL, Dong et al. 2025, arXiv 2402.10052).

    The target is the original model's distribution with the true token's logit lowered by β. Because it is fixed,
    training converges.
    """
    reference, index = upcast(ref_logits), targets[:, None]
    lowered = reference.scatter_add(1, index, reference.new_full(index.shape, -beta))
    return F.cross_entropy(upcast(logits), lowered.softmax(-1))


def logit_margin(logits: Tensor) -> Tensor:
    """mean_t (max_v z_v − mean_v z_v)², at least 0 (logit-margin flattening, Entesari et al. 2025, arXiv 2506.05314).

    It is zero if all tokens are equally likely. As there is no softmax, the gradient does not vanish before that.
    """
    logits = upcast(logits)
    return (logits.amax(-1) - logits.mean(-1)).square().mean()


_ASCENT = "mean_t log p(y_t)"
_TOFU = "Maini et al. 2024 (arXiv 2401.06121)"
GA = Loss(gradient_ascent, _ASCENT, _TOFU, retain="none")
GD = Loss(gradient_ascent, _ASCENT, "Liu et al. 2022 (arXiv 2203.12817)")
KL = Loss(gradient_ascent, _ASCENT, _TOFU, retain="kl")
IHL = Loss(inverted_hinge, "mean_t (1 + p(y_t) − max_{v≠y_t} p(v))", "Cha et al. 2025 (arXiv 2408.06621)")
UNDIAL = Loss(
    adjusted_distillation,
    "mean_t (−Σ_v q(v)·log p(v)), q = softmax(z_ref − β·1_{y_t})",
    "Dong et al. 2025 (arXiv 2402.10052)",
)
WGA = Loss(weighted_ascent, "mean_t sg(p(y_t))^β · log p(y_t)", "Wang et al. 2025 (arXiv 2502.19301)")
SATIMP = Loss(
    saturation_importance,
    "mean_t sg(p(y_t)^β₁ · (1 − p(y_t))^β₂) · log p(y_t)",
    "Yang et al. 2025 (arXiv 2505.11953)",
)
CEU = Loss(
    cross_entropy_unlearning,
    "mean_t (−Σ_v q(v)·log p(v)), q = softmax(sg(z) with z_{y_t} = −∞)",
    "Yang 2025 (arXiv 2503.01224)",
    retain="none",
)
PDU = Loss(
    logit_margin,
    "mean_t (max_v z_v − mean_v z_v)²; after each update λ ← max(0, λ + η·(retain loss − ε))",
    "Entesari et al. 2025 (arXiv 2506.05314)",
    update_weight=dual_ascent,
)
