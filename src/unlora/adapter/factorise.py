"""Weighted low-rank factorisation of a weight, which initialises the adapter from the weight's important rows."""

from __future__ import annotations

import torch
from torch import Tensor

from unlora.common.errors import InputError, Problem

# Up to this size of the smaller dimension, the full SVD is used, which is exact and takes less than a second. Above it,
# a randomised SVD is used, whose settings keep its error within 1 % of the optimum (checked by a test).
FULL_SVD_SIZE = 512
_OVERSAMPLING = 24
_POWER_ITERATIONS = 6


def weighted_low_rank(
    weight: Tensor, row_importance: Tensor, rank: int, scaling: float, *, delta: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return the factors A₀, B₀ that, up to δ, minimise Σ_ij importance_i·(W − s·B·A)²_ij.

    With w = sqrt(row_importance) and the truncated SVD U, S, V = SVD_r(diag(w)·W),
    A₀ = (V·√(S/s))ᵀ and B₀ = diag(1/(w + δ))·U·√(S/s).

    Args:
        weight: [out, in].
        row_importance: [out] importance summed over each row, or [out, in] importance; at least 0.
        rank: at least 1 and at most min(out, in).
        scaling: s, the adapter's factor of B·A (alpha / rank in plain LoRA).
        delta: δ, which keeps B₀ finite in rows of importance 0.

    Returns:
        A₀ [rank, in] and B₀ [out, rank], float32. The result is deterministic.

    Raises:
        InputError: the rank is out of range, the scaling is not positive, or the importance has another shape or
            entries that are negative or not finite.

    Source: FILA (arXiv 2408.06621), weighted low-rank approximation.
    """
    _check(weight, row_importance, rank, scaling)
    row_importance = row_importance.sum(1) if row_importance.dim() == 2 else row_importance
    row_weight = row_importance.to(weight.device, torch.float32).sqrt()
    weight = weight.detach().float()
    s, v = _truncated_svd(row_weight[:, None] * weight, rank)
    a0 = (v * (s / scaling).sqrt()).T.contiguous()
    # U = diag(w)·W·V/S, and diag(1/(w + δ)) nearly cancels diag(w). The U that the SVD returns has rounding errors,
    # which 1/w would amplify in rows of little importance.
    inverse_root = torch.where(s > 0, (s * scaling).rsqrt(), 0.0)
    return a0, (row_weight / (row_weight + delta))[:, None] * (weight @ v) * inverse_root


def _truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first `rank` singular values S [rank] and right singular vectors V [in, rank]."""
    if min(matrix.shape) <= FULL_SVD_SIZE:
        _, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return s[:rank], vh[:rank].T
    devices = [matrix.device] if matrix.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        width = min(rank + _OVERSAMPLING, *matrix.shape)
        _, s, v = torch.svd_lowrank(matrix, q=width, niter=_POWER_ITERATIONS)
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
