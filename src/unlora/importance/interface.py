"""What an initialiser is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unlora.adapter.settings import AdapterSettings
from unlora.data.padding import Batch
from unlora.settings import ImportanceConfig

# Settings of `ImportanceConfig` that every start reads which measures an importance on data.
OF_MEASUREMENT = (
    *("smoothing", "epsilon", "centred", "normalised", "moments_per", "forget_passes"),
    *("importance_seed", "retain_samples", "importance_batch_size", "importance_file"),
)


@dataclass(frozen=True)
class Measurement:
    """What an initialiser may look at.

    Args:
        model: the model before unlearning; left as it is.
        adapter: rank, scaling and target modules of the adapter to start.
        config: how the importance is estimated.
        forget: makes this process's batches of the forget set, anew at each call.
        retain: the same of the retain sample, or of the part of it that a slice names: `retain(slice(0, 128))`.
        retain_size: examples of that sample.
    """

    model: Any
    adapter: AdapterSettings
    config: ImportanceConfig
    forget: Callable[[], Iterable[Batch]]
    retain: Callable[..., Iterable[Batch]]
    retain_size: int


@dataclass(frozen=True)
class Initialiser:
    """One way to start the adapter.

    Args:
        rows: gives {module name: [out] row importance}, the square of the row weights in `weighted_low_rank`; or None
            for a plain LoRA start (A random, B = 0).
        formula: the importance of a weight W (out × in), as it stands in the documentation.
        paper: where it comes from.
        centred: whether it takes the gradient's variance, which two gradients are needed for, or its mean square; None
            for initialisers that look at no data.
        reads: the settings of `ImportanceConfig` that it depends on.
    """

    rows: Callable[[Measurement], dict[str, Tensor] | None]
    formula: str
    paper: str
    centred: bool | None = None
    reads: tuple[str, ...] = ()
