"""FILA: the Fisher information of a weight as the mean square of its own gradient.

Cha et al., "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", ICLR 2025 (arXiv 2408.06621). The
importance of a weight is F_forget / (ε + F_retain) with F = E[g²], summed over each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor

from unlora.adapter.targets import target_shapes
from unlora.common.errors import InputError, Problem
from unlora.importance.initialiser import RATIO_SETTINGS, Initialiser, Measurement
from unlora.importance.moments import Moments, gradient_moments
from unlora.importance.ratio import importance_ratio

# The number of weights that are measured in one pass over the data. Their two float32 moments on two sets take 4 GiB.
GROUP_SIZE = 2**28


def row_importance(measurement: Measurement) -> dict[str, Tensor]:
    """Return {module name: [out]}, from one pass over both sets for each group of layers that fits in memory."""
    config = measurement.config
    importance: dict[str, Tensor] = {}
    for names in _groups(target_shapes(measurement.model, measurement.adapter.target_modules), GROUP_SIZE):
        of_forget, of_retain = (
            gradient_moments(
                measurement.model,
                batches(),
                config.moments_per,
                weights=names,
                all_processes=True,
                limit=measurement.limit,
            )
            for batches in (measurement.forget, measurement.retain)
        )
        importance |= importance_ratio(fisher, of_forget, of_retain, rows=True, **FILA.ratio(config))
    return importance


def fisher(moments: Moments, centred: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield (module name, [out, in] F_W = E[g²] of the weight's own gradient, or its variance if `centred`)."""
    if any(".lora_" in name for name in moments.mean):
        reason, fix = "these are moments of LoRA factors", "measure whole weights (weights=...), or use method='vila'"
        raise InputError(Problem("forget", next(iter(moments.mean)), reason, fix))
    for name in moments.mean:
        yield name.removesuffix(".weight"), moments.information(name, centred)


def _groups(shapes: Mapping[str, tuple[int, ...]], size: int) -> Iterator[list[str]]:
    """Split the layers, in order, into groups of at most `size` weights. A larger layer is a group of its own."""
    group: list[str] = []
    for name, shape in shapes.items():
        if group and sum(prod(shapes[member]) for member in group) + prod(shape) > size:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


FILA = Initialiser(
    row_importance,
    "F = E[g²] of W's own gradient",
    "Cha et al., ICLR 2025 (arXiv 2408.06621)",
    reads=RATIO_SETTINGS,
    uses_data=True,
    fisher=fisher,
)
