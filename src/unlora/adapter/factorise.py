"""Weighted low-rank factorisation: the part of a weight that the important rows span."""

from __future__ import annotations

import torch
from torch import Tensor

from unlora.common.errors import InputError, Problem

# Below this many rows or columns the full SVD costs less than a second and is exact.
FULL_SVD_SIZE = 512
OVERSAMPLING = 24
POWER_ITERATIONS = 6


def weighted_low_rank(
    weight: Tensor, row_importance: Tensor, rank: int, scaling: float, *, delta: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Factors with scaling·B0·A0 near the best rank-`rank` part of `weight` under Σ_ij importance_i·(W − s·B·A)²_ij.

    With w = sqrt(row_importance) and U, S, V the truncated SVD of diag(w)·W, and S/scaling shared equally:
    A0 = (V·√S)ᵀ and B0 = diag(1/(w + δ))·U·√S.

    Args:
        weight: [out, in].
        row_importance: [out] importance summed over each row, or [out, in] importance; not negative.
        rank: at least 1 and at most min(out, in).
        scaling: what the adapter multiplies B·A with (alpha / rank in plain LoRA).
        delta: δ, keeps rows of no importance finite.

    Returns:
        A0 [rank, in] and B0 [out, rank], float32. The factorisation is seeded: equal inputs give equal factors.

    Raises:
        InputError: a rank that the weight does not have, a scaling that is not positive, importances of another shape,
            negative or not finite.

    Source: FILA (arXiv 2408.06621), weighted low-rank approximation.
    """
    _check(weight, row_importance, rank, scaling)
    row_importance = row_importance.sum(1) if row_importance.dim() == 2 else row_importance
    row_weight = row_importance.to(weight.device, torch.float32).sqrt()
    weight = weight.detach().float()
    s, v = _truncated_svd(row_weight[:, None] * weight, rank)
    a0 = (v * (s / scaling).sqrt()).T.contiguous()
    # U = diag(w)·W·V/S. From the SVD itself it has rounding errors, which 1/w blows up in rows of little importance.
    inverse_root = torch.where(s > 0, (s * scaling).rsqrt(), 0.0)
    return a0, (row_weight / (row_weight + delta))[:, None] * (weight @ v) * inverse_root


def _truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first `rank` singular values S [rank] and right singular vectors V [in, rank]."""
    if min(matrix.shape) <= FULL_SVD_SIZE:
        _, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return s[:rank], vh[:rank].T
    devices = [matrix.device] if matrix.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        width = min(rank + OVERSAMPLING, *matrix.shape)
        _, s, v = torch.svd_lowrank(matrix, q=width, niter=POWER_ITERATIONS)
    return s[:rank], v[:, :rank]


def _check(weight: Tensor, row_importance: Tensor, rank: int, scaling: float) -> None:
    if not 1 <= rank <= min(weight.shape):
        reason = f"a {tuple(weight.shape)} weight has ranks 1 to {min(weight.shape)}"
        raise InputError(Problem("rank", rank, reason, "use a rank in that range"))
    if scaling <= 0:
        raise InputError(Problem("scaling", scaling, "the factors are divided by it", "use a positive scaling"))
    if row_importance.shape not in (weight.shape, weight.shape[:1]):
        reason = f"expected {tuple(weight.shape)}, or one importance for each of the {weight.shape[0]} rows"
        raise InputError(
            Problem("row_importance", tuple(row_importance.shape), reason, "give the importance of this weight")
        )
    if not bool(torch.isfinite(row_importance).all() & (row_importance >= 0).all()):
        raise InputError(
            Problem("row_importance", "a tensor", "it has negative or non-finite entries", "check the moments")
        )
