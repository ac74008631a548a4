"""Forget losses of whole answers, by preference optimisation: of whose log-probability, or its change, is given away.

Here y_i is the answer of example i, n_i its number of labelled tokens, and σ the logistic function.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlora.models.forward import LabelledTokens


def negative_preference(out: LabelledTokens, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))), sums over the tokens of y_i (NPO, arXiv 2404.05868).

    Ascent whose weight falls as an example is forgotten. β → 0 is gradient ascent (up to a constant).
    """
    return -2 / beta * F.logsigmoid(-beta * _log_ratio(out)).mean()


def negative_preference_of_means(out: LabelledTokens, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))/n_i), at least 0: NPO of the mean over the tokens of y_i.

    What VILA's released code trains on WMDP, where texts are long (arXiv 2508.21300): sums would saturate σ.
    """
    return -2 / beta * F.logsigmoid(-beta * _log_ratio(out) / out.counts).mean()


def simple_negative_preference(out: LabelledTokens, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """−(2/β)·mean_i log σ(−β·log π(y_i)/n_i − β·δ), at least 0 (SimNPO, Fan et al. 2024, arXiv 2410.07163).

    NPO without a reference model: an answer is pushed until its mean NLL is well above the margin δ.
    """
    return -2 / beta * F.logsigmoid(-beta * (out.example_logp / out.counts + delta)).mean()


def direct_preference(out: LabelledTokens, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(β·(r(y'_i) − r(y_i))), r = log π − log π_ref, at least 0 (DPO, arXiv 2305.18290).

    Prefers the alternate answer y' over the true one. The factor 2/β is TOFU's (arXiv 2401.06121): NPO is then DPO
    without the alternate.

    Args:
        out: the true answers first, then as many alternates in the same order.
        beta: how little of a change of the log-ratio is enough.
    """
    true, alternate = _log_ratio(out).chunk(2)
    return -2 / beta * F.logsigmoid(beta * (alternate - true)).mean()


def _log_ratio(out: LabelledTokens) -> Tensor:
    """[examples] log π(y_i) − log π_ref(y_i)."""
    assert out.ref_logp is not None
    return out.example_logp - out.ref_logp
