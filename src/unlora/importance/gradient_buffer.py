"""Accumulate the moments of the gradients of many layers in few operations.

On a GPU many small operations take longer than a large one, and the moments of one layer take three operations: a
weighted sum over examples, a square, and another sum. So the gradients of consecutive layers are first collected in
chunks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

# The number of elements of a chunk, over all examples: on a CPU small enough for its cache (1 MiB), on a GPU 256 MiB.
_CPU_CHUNK, _CHUNK = 2**18, 2**26


def add_moments(gradients: Tensor, counts: Tensor, mean: Tensor, second: Tensor) -> None:
    """Add gradients and their squares to running sums, weighted by the number of tokens of each example.

    Args:
        gradients: [examples, parameters]. May be overwritten.
        counts: [examples] tokens.
        mean: Σ counts · gradient, [parameters], float32.
        second: Σ counts · gradient², [parameters], float32.
    """
    gradients = gradients.float()  # squares of half-precision gradients would underflow
    weights = counts.to(gradients.dtype)
    mean.addmv_(gradients.T, weights)
    second.addmv_(gradients.square_().T, weights)


@dataclass
class _Chunk:
    gradients: Tensor  # [examples, parameters of all layers of the chunk]
    counts: Tensor  # [examples] tokens
    first: int  # the index of its first layer
    missing: set[int]  # the layers without a gradient so far


class GradientBuffer:
    """The moments of all layers as one vector, and the gradients of the current batch that are not added to them yet.

    Args:
        sizes: the number of parameters of each layer.
        device: the device of the moments.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._starts = list(accumulate(sizes, initial=0))
        self._mean, self._second = (torch.zeros(self._starts[-1], device=device) for _ in range(2))
        self._chunks: dict[int, _Chunk] = {}
        self._chunk_size = _CPU_CHUNK if device.type == "cpu" else _CHUNK

    def moments(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the sums of a layer, [size of the layer] each, as views that are updated with later gradients."""
        part = slice(*self._starts[layer : layer + 2])
        return self._mean[part], self._second[part]

    def add(self, layer: int, counts: Tensor, dtype: torch.dtype, fill: Callable[[Tensor], None]) -> None:
        """Add the gradients of a layer for one batch.

        Args:
            layer: its index in `sizes`.
            counts: [examples] tokens, the same for all layers of a batch.
            dtype: the dtype in which the gradients are computed.
            fill: writes the gradients to a tensor [examples, size of the layer].
        """
        width = max(1, self._chunk_size // len(counts))  # parameters of a chunk; its last layer may extend beyond it
        number = self._starts[layer] // width
        chunk = self._chunks.get(number) or self._new_chunk(number, width, counts, dtype)
        fill(self._slot(chunk, layer))
        chunk.missing.remove(layer)
        if not chunk.missing:
            self._finish(number)

    def end_batch(self) -> None:
        """Add the remaining gradients of a batch. Layers that did not run have gradient 0."""
        for number, chunk in list(self._chunks.items()):
            for layer in chunk.missing:
                self._slot(chunk, layer).zero_()
            self._finish(number)

    def discard_batch(self) -> None:
        """Discard the remaining gradients of a batch that failed."""
        self._chunks.clear()

    def _new_chunk(self, number: int, width: int, counts: Tensor, dtype: torch.dtype) -> _Chunk:
        """Allocate the chunk of all layers that begin in [number · width, (number + 1) · width)."""
        first, stop = (
            bisect_left(self._starts, edge, hi=len(self._starts) - 1) for edge in (number * width, (number + 1) * width)
        )
        gradients = torch.empty(
            len(counts), self._starts[stop] - self._starts[first], dtype=dtype, device=self._mean.device
        )
        self._chunks[number] = _Chunk(gradients, counts, first, set(range(first, stop)))
        return self._chunks[number]

    def _slot(self, chunk: _Chunk, layer: int) -> Tensor:
        start, stop = (edge - self._starts[chunk.first] for edge in self._starts[layer : layer + 2])
        return chunk.gradients[:, start:stop]

    def _finish(self, number: int) -> None:
        chunk = self._chunks.pop(number)
        part = slice(self._starts[chunk.first], self._starts[chunk.first] + chunk.gradients.shape[1])
        add_moments(chunk.gradients, chunk.counts, self._mean[part], self._second[part])
