"""Reduce the rank of a low-rank product by its truncated SVD, without forming the product."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Compressed(NamedTuple):
    """A low-rank approximation b·a of a product B·A, and its error.

    Args:
        a: [rank, in].
        b: [out, rank].
        norm: ‖B·A‖ (Frobenius).
        error: ‖B·A − b·a‖.
    """

    a: Tensor
    b: Tensor
    norm: float
    error: float


@dataclass(frozen=True)
class Compression:
    """The error of a compressed adapter.

    Args:
        rank: the largest rank of a module after compression.
        relative_error: sqrt(Σ‖ΔW − ΔW_k‖² / Σ‖ΔW‖²) over all modules, where ΔW is the adapter's change of a weight and
            ΔW_k its approximation of lower rank.
        largest_relative_error: the largest ‖ΔW − ΔW_k‖ / ‖ΔW‖ of any module.
    """

    rank: int
    relative_error: float
    largest_relative_error: float


@torch.no_grad()
def compress(a: Tensor, b: Tensor, rank: int) -> Compressed:
    """Return the best approximation of B·A of at most this rank (Eckart and Young 1936).

    With the QR decompositions B = Q_b·R_b and Aᵀ = Q_a·R_a and the SVD R_b·R_aᵀ = U·S·Vᵀ of a small matrix, the SVD of
    B·A is (Q_b·U)·S·(Q_a·V)ᵀ. The square roots of the singular values go into both new factors.

    Args:
        a: [old rank, in].
        b: [out, old rank].
        rank: at least 1. Factors whose rank is not above it are returned unchanged.

    Returns:
        Factors of the given dtype on the given device, computed in float32 or float64.
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    q_b, r_b = torch.linalg.qr(b.to(dtype))
    q_a, r_a = torch.linalg.qr(a.to(dtype).T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    norm = float(s.norm())
    if rank >= len(a):
        return Compressed(a, b, norm, 0.0)
    root = s[:rank].sqrt()
    new_a = root[:, None] * (vh[:rank] @ q_a.T)
    new_b = (q_b @ u[:, :rank]) * root
    return Compressed(new_a.to(a.dtype), new_b.to(b.dtype), norm, float(s[rank:].norm()))


def total(parts: Iterable[tuple[Compressed, float]]) -> Compression:
    """Return the error over all modules, given as (compressed product, its scaling)."""
    rank, norm, error, largest = 0, 0.0, 0.0, 0.0
    for part, scaling in parts:
        rank = max(rank, len(part.a))
        norm, error = norm + (scaling * part.norm) ** 2, error + (scaling * part.error) ** 2
        largest = max(largest, part.error / part.norm if part.norm else 0.0)
    return Compression(rank, math.sqrt(error / norm) if norm else 0.0, largest)
