"""FILA: Fisher information of a weight from its own gradient's mean square."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor

from unlora.adapter.settings import target_shapes
from unlora.importance import gradient_moments, relative_importance
from unlora.importance.interface import OF_MEASUREMENT, Initialiser, Measurement

# Weights measured in one pass over the data: their moments over both sets take four times as many float32 (4 GiB).
GROUP = 2**28


def rows(measurement: Measurement) -> dict[str, Tensor]:
    """Passes over forget and retain batches, as many as there are groups of layers that fit in memory."""
    config = measurement.config
    importance: dict[str, Tensor] = {}
    for group in groups(target_shapes(measurement.model, measurement.adapter.target_modules)):
        of_forget, of_retain = (
            gradient_moments(measurement.model, batches(), config.moments_per, weights=group, all_processes=True)
            for batches in (measurement.forget, measurement.retain)
        )
        importance |= relative_importance(of_forget, of_retain, "fila", rows=True, **config.ratio())
    return importance


def groups(shapes: Mapping[str, tuple[int, ...]], most: int | None = None) -> Iterator[list[str]]:
    """Names in their order, in groups of at most `most` (`GROUP`) numbers, or of one layer that is larger by itself."""
    most = GROUP if most is None else most
    group: list[str] = []
    for name, shape in shapes.items():
        if group and sum(prod(shapes[member]) for member in group) + prod(shape) > most:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


FILA = Initialiser(
    rows,
    "F = E[g²] of W's own gradient",
    "Cha et al., ICLR 2025 (arXiv 2408.06621)",
    centred=False,
    reads=OF_MEASUREMENT,
)
