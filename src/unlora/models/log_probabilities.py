"""Log-probabilities of chosen tokens, without a copy of the whole distribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits taken at once: on a CPU few enough for its cache (2 MiB), elsewhere enough to keep the device busy (128 MiB).
CPU_BLOCK, BLOCK = 2**19, 2**25


def upcast(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def token_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target] of each token, in nats.

    Nothing but the logits is kept for the backward pass, where `F.cross_entropy` keeps a distribution in float32 too.

    Args:
        logits: [tokens, vocabulary].
        targets: [tokens], int64.

    Returns:
        [tokens], at least float32. It has a first derivative only.
    """
    result: Tensor = _TokenLogp.apply(logits, targets)
    return result


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        blocks = _blocks(logits, targets)
        return -torch.cat([F.cross_entropy(upcast(block), target, reduction="none") for block, target in blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The derivative by the logits: one at the target, minus the probabilities."""
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        for out, block, target, factor in _blocks(result, logits, targets[:, None], gradient[:, None]):
            part = upcast(block).softmax(-1).mul_(-factor)
            out.copy_(part.scatter_add_(1, target, factor))
        return result, None


def _blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, (CPU_BLOCK if first.device.type == "cpu" else BLOCK) // first.shape[-1])
    return zip(*(tensor.split(size) for tensor in (first, *others)), strict=True)
