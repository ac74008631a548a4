"""Forget losses of single tokens: what is minimised so that the labelled tokens of the forget set are forgotten.

Here y is a labelled token, z the logits that predict it, p = softmax(z), and sg(·) carries no gradient. All are means
over the batch's labelled tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlora.models.forward import LabelledTokens
from unlora.models.log_probabilities import upcast


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


def weighted_ascent(out: LabelledTokens, beta: float = 1.0) -> Tensor:
    """mean_t sg(p(y_t))^β · log p(y_t), in [−1/(eβ), 0] (WGA, Wang et al. 2025, arXiv 2502.19301).

    Ascent whose pull fades with the token's probability. β → 0 is gradient ascent.
    """
    return (out.logp.detach().mul(beta).exp() * out.logp).mean()


def saturation_importance(out: LabelledTokens, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """mean_t sg(p(y_t)^β₁ · (1 − p(y_t))^β₂) · log p(y_t), at most 0 (SatImp, Yang et al. 2025, arXiv 2505.11953).

    Ascent on tokens that are neither forgotten already (small p) nor merely predictable (p near 1).
    """
    logp = out.logp.detach()
    # 1 − p by expm1: near p = 1 the difference would be rounding alone.
    weight = logp.mul(beta1).exp() * (-torch.expm1(logp)).pow(beta2)
    return (weight * out.logp).mean()


def cross_entropy_unlearning(out: LabelledTokens) -> Tensor:
    """mean_t −Σ_v q(v)·log p(v), q = softmax(sg(z) with z_y = −∞), at least 0 (CE-U, Yang 2025, arXiv 2503.01224).

    Teaches the model its own distribution without the true token; a gradient of p(y) on the true token's logit, which
    fades as it is forgotten.
    """
    logits = upcast(out.logits)
    target = logits.detach().scatter(1, out.targets[:, None], -torch.inf).softmax(-1)
    return F.cross_entropy(logits, target)


def adjusted_distillation(out: LabelledTokens, beta: float = 10.0) -> Tensor:
    """mean_t −Σ_v q(v)·log p(v), q = softmax(z_ref − β·1_y), at least 0 (UnDIAL, Dong et al. 2025, arXiv 2402.10052).

    Distils the model before unlearning with the true token's logit lowered by β: a fixed target, so training settles.
    """
    assert out.ref_logits is not None
    reference, index = upcast(out.ref_logits), out.targets[:, None]
    lowered = reference.scatter_add(1, index, reference.new_full(index.shape, -beta))
    return F.cross_entropy(upcast(out.logits), lowered.softmax(-1))


def logit_margin(out: LabelledTokens) -> Tensor:
    """mean_t (max_v z_v − mean_v z_v)², at least 0 (logit-margin flattening, Entesari et al. 2025, arXiv 2506.05314).

    Zero where all tokens are equally likely. No softmax, so the gradient does not vanish on the way there.
    """
    logits = upcast(out.logits)
    return (logits.amax(-1) - logits.mean(-1)).square().mean()
