"""PiSSA: the principal part of each weight, whatever the data."""

from __future__ import annotations

import torch
from torch import Tensor

from unlora.adapter.settings import target_shapes
from unlora.importance.interface import Initialiser, Measurement


def rows(measurement: Measurement) -> dict[str, Tensor]:
    """The same importance for every row."""
    shapes = target_shapes(measurement.model, measurement.adapter.target_modules)
    return {name: torch.ones(shape[0]) for name, shape in shapes.items()}


PISSA = Initialiser(
    rows, "all rows alike: the first r singular vectors of W", "Meng et al., NeurIPS 2024 (arXiv 2404.02948)"
)
