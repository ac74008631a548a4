"""Relative importance: how much a weight matters for the forget set, over how much it matters for the retain set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from unlora.config import SMOOTHING
from unlora.errors import InputError, Problem, unknown_name
from unlora.fisher.moments import Moments
from unlora.fisher.vila import vila_fisher

# An importance method yields (module name, Fisher information [out, in]), one layer at a time.
IMPORTANCE_METHODS: dict[str, Callable[[Moments], Iterator[tuple[str, Tensor]]]] = {"vila": vila_fisher}


def relative_importance(
    forget: Moments,
    retain: Moments,
    method: str = "vila",
    *,
    smoothing: str = "relative",
    epsilon: float | None = None,
    rows: bool = False,
) -> dict[str, Tensor]:
    """Importance F_forget / (ε + F_retain) of each adapted weight.

    Args:
        forget: gradient moments over the forget set.
        retain: the same over the retain set.
        method: how moments become the Fisher information of a weight: "vila".
        smoothing: "relative" takes ε as a fraction of the layer's mean retain Fisher information, so that the result
            does not depend on the scale of the loss; "absolute" takes it as it is (as VILA's released code does).
        epsilon: ε; 0.1 for relative and 1e-5 for absolute smoothing if not given.
        rows: return sums over each row, so that only one out × in matrix is alive at any time.

    Returns:
        {module name: [out, in]}, or {module name: [out]} with `rows`, float32.

    Raises:
        InputError: unknown method or smoothing, moments of different layers, or an ε that is not positive.

    Source: FILA (arXiv 2408.06621) for the ratio, VILA (arXiv 2508.21300) for the information.
    """
    if method not in IMPORTANCE_METHODS:
        raise InputError(unknown_name("method", method, IMPORTANCE_METHODS))
    if smoothing not in SMOOTHING:
        raise InputError(unknown_name("smoothing", smoothing, SMOOTHING))
    epsilon = SMOOTHING[smoothing] if epsilon is None else epsilon
    if epsilon <= 0:
        raise InputError(
            Problem("epsilon", epsilon, "layers without retain gradient would divide by zero", "use ε > 0")
        )
    if forget.mean.keys() != retain.mean.keys():
        odd = sorted(forget.mean.keys() ^ retain.mean.keys())
        raise InputError(
            Problem("retain", odd[:3], "moments of different parameters", "measure both on the same model")
        )
    retain = replace(retain, mean={name: retain.mean[name] for name in forget.mean})  # in the same order
    fisher = IMPORTANCE_METHODS[method]
    importance = {}
    for (name, of_forget), (_, of_retain) in zip(fisher(forget), fisher(retain), strict=True):
        floor = epsilon * of_retain.mean() if smoothing == "relative" else of_retain.new_tensor(epsilon)
        ratio = of_forget.div_(of_retain.add_(floor.clamp(min=torch.finfo(torch.float32).tiny)))
        importance[name] = ratio.sum(1) if rows else ratio
    return importance
