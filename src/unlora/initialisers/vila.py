"""VILA: Fisher information of a weight from the gradient variance of its LoRA factors."""

from __future__ import annotations

from torch import Tensor

from unlora.adapter import attach_probe, detach_adapters
from unlora.fisher import gradient_moments, relative_importance
from unlora.initialisers.interface import Initialiser, Measurement


def rows(measurement: Measurement) -> dict[str, Tensor]:
    """Two passes, over forget and retain batches, on random LoRA factors."""
    config = measurement.config
    probe = attach_probe(
        measurement.model, measurement.adapter, config.sigma, config.importance_seed, offset=config.probe_offset
    )
    of_forget, of_retain = (
        gradient_moments(probe, batches(), config.moments_per, all_processes=True)
        for batches in (measurement.forget, measurement.retain)
    )
    detach_adapters(probe)
    return relative_importance(of_forget, of_retain, "vila", rows=True, **config.ratio())


VILA = Initialiser(
    rows,
    "F = V_B · V_A, V = max(E[g²] − E[g]², 0) of each LoRA factor's gradient at A, B ~ N(0, σ²)",
    "Kim et al., COLM 2025 (arXiv 2508.21300)",
    centred=True,
)
