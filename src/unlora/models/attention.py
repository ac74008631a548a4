"""Change the attention of a model inside a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def smoothed_attention(model: nn.Module, temperature: float) -> Iterator[int]:
    """Divide the attention scores of all layers by a temperature, so that softmax(QKᵀ / (τ√d)) is flatter.

    Attention layers of transformers pass their attribute `scaling`, 1/√d, to every attention kernel. Layers without
    it, such as those of state-space models, are not changed.

    Yields:
        The number of layers that were changed.

    Source: arXiv 2603.01285.
    """
    layers: dict[Any, Any] = {
        layer: layer.scaling for layer in model.modules() if isinstance(getattr(layer, "scaling", None), float)
    }
    try:
        for layer, scaling in layers.items():
            layer.scaling = scaling / temperature
        yield len(layers)
    finally:
        for layer, scaling in layers.items():
            layer.scaling = scaling
