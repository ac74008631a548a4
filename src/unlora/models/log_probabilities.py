"""Log-probabilities of chosen tokens, without storing the distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits per block: few enough for the cache of a CPU (2 MiB), and enough to keep a GPU busy (128 MiB).
_CPU_BLOCK, _BLOCK = 2**19, 2**25


def upcast(tensor: Tensor) -> Tensor:
    """Return tensors of less than float32 precision as float32, and float32 and float64 unchanged."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def token_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits)[target] of each token, in nats.

    Only the logits are saved for the backward pass, which recomputes the probabilities. `F.cross_entropy` would also
    save the whole distribution in float32, which takes three times the memory with bfloat16 logits.

    Args:
        logits: [tokens, vocabulary].
        targets: [tokens], int64.

    Returns:
        [tokens], at least float32. It can be differentiated once.
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
        """Return the gradient of the logits: gradient · (1 at the target − softmax(logits))."""
        logits, targets = ctx.saved_tensors
        result = torch.empty_like(logits)
        for out, block, target, factor in _blocks(result, logits, targets[:, None], gradient[:, None]):
            part = upcast(block).softmax(-1).mul_(-factor)
            out.copy_(part.scatter_add_(1, target, factor))
        return result, None


def _blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = max(1, (_CPU_BLOCK if first.device.type == "cpu" else _BLOCK) // first.shape[-1])
    return zip(*(tensor.split(size) for tensor in (first, *others)), strict=True)
