"""Size and training of the small models of the built-in benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Size and training of a model. The default is the smallest that learns persona by heart, in half a minute."""

    seed: int = 0
    vocab_size: int = 1000  # so small that names and values take several tokens, as in real models
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    epochs: float = 36
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: float = 0.1
