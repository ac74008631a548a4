"""Relative importance: the ratio of a weight's Fisher information on the forget set to that on the retain set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from unlora.common.errors import InputError, Problem, unknown_name
from unlora.importance.moments import Moments
from unlora.settings import SMOOTHING


def importance_ratio(
    fisher: Callable[[Moments, bool], Iterator[tuple[str, Tensor]]],
    forget: Moments,
    retain: Moments,
    centred: bool,
    smoothing: str = "relative",
    epsilon: float | None = None,
    normalised: bool = False,
    rows: bool = False,
) -> dict[str, Tensor]:
    """Return F_forget / (ε + F_retain) of each adapted weight (FILA, Cha et al., ICLR 2025, arXiv 2408.06621).

    `fisher` computes the Fisher information from the moments: (moments, centred) -> iterator of (module name,
    [out, in]), layer by layer. All other arguments, the result and the errors are as in `relative_importance`.
    """
    if smoothing not in SMOOTHING:
        raise InputError(unknown_name("smoothing", smoothing, SMOOTHING))
    epsilon = SMOOTHING[smoothing] if epsilon is None else epsilon
    if not 0 < epsilon < math.inf:
        reason = "layers without a retain gradient would be divided by zero"
        raise InputError(Problem("epsilon", epsilon, reason, "use a finite ε > 0"))
    if forget.mean.keys() != retain.mean.keys():
        odd = sorted(forget.mean.keys() ^ retain.mean.keys())
        reason = "these parameters were measured on one set only"
        raise InputError(Problem("retain", odd[:3], reason, "measure both sets on the same model"))
    retain = replace(retain, mean={name: retain.mean[name] for name in forget.mean})  # in the same order
    importance = {}
    # One layer at a time: all [out, in] matrices together would take as much memory as the model.
    for (name, of_forget), (_, of_retain) in zip(fisher(forget, centred), fisher(retain, centred), strict=True):
        if smoothing == "per_token":
            of_forget, of_retain = of_forget.div_(forget.tokens), of_retain.div_(retain.tokens)
        floor = epsilon * of_retain.mean() if smoothing == "relative" else of_retain.new_tensor(epsilon)
        ratio = of_forget.div_(of_retain.add_(_not_zero(floor)))
        if normalised:
            ratio.div_(_not_zero(ratio.sum(1).mean()))
        importance[name] = ratio.sum(1) if rows else ratio
    return importance


def normalised_rows(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale each layer's row sums [out] to mean 1, as `normalised` does in `importance_ratio`."""
    return {name: rows / _not_zero(rows.mean()) for name, rows in importance.items()}


def _not_zero(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(torch.float32).tiny)
