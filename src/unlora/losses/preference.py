"""Sequence-level forget losses: preference optimisation of whole answers.

Here y_i is the answer of example i, n_i its number of labelled tokens, and σ the logistic function. Every loss is the
mean over the examples of a batch. Shapes: `example_logp` (log π(y_i), summed over the tokens of y_i), `ref_logp`
(log π_ref(y_i) of the original model) and `counts` (n_i) are all [examples].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlora.losses.interface import Loss


def negative_preference(example_logp: Tensor, ref_logp: Tensor, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))), at least 0 (NPO, Zhang et al. 2024, arXiv 2404.05868).

    This is gradient ascent whose weight falls as an example is forgotten. β → 0 is gradient ascent, up to a constant.
    """
    return -2 / beta * F.logsigmoid(-beta * (example_logp - ref_logp)).mean()


def negative_preference_of_means(example_logp: Tensor, ref_logp: Tensor, counts: Tensor, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))/n_i), at least 0: NPO with the mean over the tokens of y_i.

    VILA's released code uses this on WMDP (arXiv 2508.21300), where texts are so long that sums would saturate σ.
    """
    return -2 / beta * F.logsigmoid(-beta * (example_logp - ref_logp) / counts).mean()


def simple_negative_preference(example_logp: Tensor, counts: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """−(2/β)·mean_i log σ(−β·log π(y_i)/n_i − β·δ), at least 0 (SimNPO, Fan et al. 2024, arXiv 2410.07163).

    This is NPO without a reference model. It raises the mean NLL of an answer until it is well above the margin δ.
    """
    return -2 / beta * F.logsigmoid(-beta * (example_logp / counts + delta)).mean()


def direct_preference(example_logp: Tensor, ref_logp: Tensor, beta: float = 0.1) -> Tensor:
    """−(2/β)·mean_i log σ(β·(r(y'_i) − r(y_i))), r = log π − log π_ref, at least 0 (DPO, arXiv 2305.18290).

    This trains the model to prefer the alternate answer y' over the true one. The factor 2/β follows TOFU
    (arXiv 2401.06121) and makes NPO equal to DPO without the term of the alternate answer.

    Args:
        example_logp: [2 · pairs], the true answers first, then the alternates in the same order.
        ref_logp: [2 · pairs], in the same order.
        beta: β. The larger it is, the smaller the change of the log-ratio that saturates the loss.
    """
    true, alternate = (example_logp - ref_logp).chunk(2)
    return -2 / beta * F.logsigmoid(beta * (alternate - true)).mean()


NPO = Loss(
    negative_preference,
    "−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i)))",
    "Zhang et al. 2024 (arXiv 2404.05868)",
    mean_over="pairs",
)
NPO_MEAN = Loss(
    negative_preference_of_means,
    "−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))/n_i)",
    "Kim et al. 2025 (arXiv 2508.21300)",
    mean_over="pairs",
)
SIMNPO = Loss(
    simple_negative_preference,
    "−(2/β)·mean_i log σ(β·(NLL(y_i)/n_i − δ))",
    "Fan et al. 2024 (arXiv 2410.07163)",
    mean_over="pairs",
)
DPO = Loss(
    direct_preference,
    "−(2/β)·mean_i log σ(β·(r(y'_i) − r(y_i))), r = log π − log π_ref",
    "Rafailov et al. 2023 (arXiv 2305.18290)",
    reads=("forget", "alternate"),
    mean_over="pairs",
)
