"""VILA: Fisher information of a weight from the gradient variance of its LoRA factors."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from unlora.adapter import attach_probe, detach_adapters
from unlora.data.padding import Batch
from unlora.importance import Moments, gradient_moments, moments_until_stable, relative_importance
from unlora.importance.interface import OF_MEASUREMENT, Initialiser, Measurement


def rows(measurement: Measurement) -> dict[str, Tensor]:
    """Two passes, over the forget set and as much of the retain sample as it takes, on random LoRA factors."""
    config = measurement.config
    probe = attach_probe(
        measurement.model, measurement.adapter, config.sigma, config.importance_seed, offset=config.probe_offset
    )

    def moments(batches: Iterable[Batch]) -> Moments:
        return gradient_moments(probe, batches, config.moments_per, all_processes=True)

    def importance(of_retain: Moments) -> dict[str, Tensor]:
        return relative_importance(of_forget, of_retain, "vila", rows=True, **config.ratio())

    of_forget = moments(measurement.forget())
    if config.stops_at is None:
        of_retain = moments(measurement.retain())
    else:
        of_retain = moments_until_stable(
            lambda part: moments(measurement.retain(part)), measurement.retain_size, importance, config.stops_at
        )
    detach_adapters(probe)
    return importance(of_retain)


VILA = Initialiser(
    rows,
    "F = V_B · V_A, V = max(E[g²] − E[g]², 0) of each LoRA factor's gradient at A, B ~ N(0, σ²)",
    "Kim et al., COLM 2025 (arXiv 2508.21300)",
    centred=True,
    reads=("sigma", "probe_offset", "retain_convergence", *OF_MEASUREMENT),
)
