"""PiSSA: initialise with the principal components of each weight, without data (Meng et al. 2024, arXiv 2404.02948)."""

from __future__ import annotations

import torch
from torch import Tensor

from unlora.adapter.targets import target_shapes
from unlora.importance.initialiser import Initialiser, Measurement


def row_importance(measurement: Measurement) -> dict[str, Tensor]:
    """Return importance 1 for every row, with which the weighted factorisation is the plain truncated SVD."""
    shapes = target_shapes(measurement.model, measurement.adapter.target_modules)
    return {name: torch.ones(shape[0]) for name, shape in shapes.items()}


PISSA = Initialiser(
    row_importance,
    "the same for all rows, so that the start is the first r singular vectors of W",
    "Meng et al., NeurIPS 2024 (arXiv 2404.02948)",
)
