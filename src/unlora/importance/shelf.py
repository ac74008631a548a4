"""Add up the moments of the gradients of many layers together.

On a GPU many small operations cost more than a large one, and the moments of one layer take three: a weighted sum over
examples, a square, and another sum. So the gradients of neighbouring layers are put side by side first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

# Gradients of single examples are kept for as many layers as make up this many numbers: on a CPU few enough for its
# cache (1 MiB), on a GPU 256 MiB.
_CPU_PAGE, _PAGE = 2**18, 2**26


def add_moments(gradients: Tensor, counts: Tensor, mean: Tensor, second: Tensor) -> None:
    """Add the moments of some gradients, weighted by the examples' numbers of tokens.

    Args:
        gradients: [examples, numbers]. They are overwritten.
        counts: [examples].
        mean: Σ counts · gradient, [numbers], float32.
        second: Σ counts · gradient², [numbers], float32.
    """
    gradients = gradients.float()  # squares of half-precision gradients would underflow
    weights = counts.to(gradients.dtype)
    mean.addmv_(gradients.T, weights)
    second.addmv_(gradients.square_().T, weights)


@dataclass
class _Page:
    gradients: Tensor  # [examples, numbers of all its layers]
    counts: Tensor
    first: int  # its first layer
    missing: set[int]


class Shelf:
    """Holds the moments of all layers in one row, and the gradients of a batch that are not part of them yet.

    Args:
        sizes: the number of parameters of each layer.
        device: where the moments are.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._starts = list(accumulate(sizes, initial=0))
        self._mean, self._second = (torch.zeros(self._starts[-1], device=device) for _ in range(2))
        self._pages: dict[int, _Page] = {}
        self._page_size = _CPU_PAGE if device.type == "cpu" else _PAGE

    def moments(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the sums of a layer, [its size] each, as views that later gradients are added to."""
        part = slice(*self._starts[layer : layer + 2])
        return self._mean[part], self._second[part]

    def add(self, layer: int, counts: Tensor, dtype: torch.dtype, fill: Callable[[Tensor], None]) -> None:
        """Add the gradients of a layer in one batch.

        Args:
            layer: its place in `sizes`.
            counts: [examples] tokens, the same for all layers of a batch.
            dtype: in which the gradients are computed.
            fill: writes the gradients to a tensor [examples, size of the layer].
        """
        width = max(1, self._page_size // len(counts))  # of a page; its last layer may be longer
        number = self._starts[layer] // width
        page = self._pages.get(number) or self._new_page(number, width, counts, dtype)
        fill(self._room(page, layer))
        page.missing.remove(layer)
        if not page.missing:
            self._finish(number)

    def end_batch(self) -> None:
        """Add what is left of a batch. Layers that did not run have no gradient."""
        for number, page in list(self._pages.items()):
            for layer in page.missing:
                self._room(page, layer).zero_()
            self._finish(number)

    def forget_batch(self) -> None:
        """Drop what is left of a batch that failed."""
        self._pages.clear()

    def _new_page(self, number: int, width: int, counts: Tensor, dtype: torch.dtype) -> _Page:
        """Start the page of all layers that begin in one stretch of the row."""
        first, stop = (
            bisect_left(self._starts, edge, hi=len(self._starts) - 1) for edge in (number * width, (number + 1) * width)
        )
        gradients = torch.empty(
            len(counts), self._starts[stop] - self._starts[first], dtype=dtype, device=self._mean.device
        )
        self._pages[number] = _Page(gradients, counts, first, set(range(first, stop)))
        return self._pages[number]

    def _room(self, page: _Page, layer: int) -> Tensor:
        start, stop = (edge - self._starts[page.first] for edge in self._starts[layer : layer + 2])
        return page.gradients[:, start:stop]

    def _finish(self, number: int) -> None:
        page = self._pages.pop(number)
        part = slice(self._starts[page.first], self._starts[page.first] + page.gradients.shape[1])
        add_moments(page.gradients, page.counts, self._mean[part], self._second[part])
