"""Relative importance: how much a weight matters for the forget set, over how much it matters for the retain set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unlora.common.errors import InputError, Problem, unknown_name
from unlora.importance.moments import Moments
from unlora.settings import SMOOTHING


def fisher_of_factors(moments: Moments, centred: bool) -> Iterator[tuple[str, Tensor]]:
    """F_W = V_B · V_A, where V is the gradient's variance (or E[g²]) of each LoRA factor (VILA, arXiv 2508.21300).

    Yields:
        (module name in the base model, [out, in] Fisher information), one layer at a time.
    """
    if not all(".lora_" in name for name in moments.mean):
        raise _wrong_moments(moments, "whole weights", "measure LoRA factors, or use method='fila'")
    for name_a in moments.mean:
        module, factor, tail = name_a.partition(".lora_A.")
        if factor:
            of_b = moments.information(f"{module}.lora_B.{tail}", centred)
            # PEFT's own prefix belongs to the wrapper.
            yield module.removeprefix("base_model.model."), of_b @ moments.information(name_a, centred)


def fisher_of_weights(moments: Moments, centred: bool) -> Iterator[tuple[str, Tensor]]:
    """F_W = E[g²] (or the variance) of the weight's own gradient (FILA, arXiv 2408.06621); yields as above."""
    if any(".lora_" in name for name in moments.mean):
        raise _wrong_moments(moments, "LoRA factors", "measure whole weights (weights=...), or use method='vila'")
    for name in moments.mean:
        yield name.removesuffix(".weight"), moments.information(name, centred)


def _wrong_moments(moments: Moments, measured: str, fix: str) -> InputError:
    return InputError(Problem("forget", next(iter(moments.mean)), f"these are moments of {measured}", fix))


@dataclass(frozen=True)
class Information:
    """How moments become the Fisher information of a weight.

    Args:
        fisher: (moments, centred) -> (module name, [out, in] information), one layer at a time.
        centred: the variance of the gradient, or its mean square. Information is the variance of the score, and the
            mean score vanishes only on data that the model itself would have produced, which a forget set is not.
    """

    fisher: Callable[[Moments, bool], Iterator[tuple[str, Tensor]]]
    centred: bool


IMPORTANCE_METHODS = {
    "vila": Information(fisher_of_factors, centred=True),
    "fila": Information(fisher_of_weights, centred=False),
}


def relative_importance(
    forget: Moments,
    retain: Moments,
    method: str = "vila",
    *,
    smoothing: str = "relative",
    epsilon: float | None = None,
    centred: bool | None = None,
    normalised: bool = False,
    rows: bool = False,
) -> dict[str, Tensor]:
    """Importance F_forget / (ε + F_retain) of each adapted weight.

    Args:
        forget: gradient moments over the forget set.
        retain: the same over the retain set.
        method: how moments become the Fisher information of a weight: "vila" (of LoRA factors) or "fila" (of whole
            weights).
        smoothing: "relative" takes ε as a fraction of the layer's mean retain Fisher information, so that the result
            does not depend on the scale of the loss; "absolute" takes it as it is; "per_token" too, after dividing both
            informations once more by the number of their tokens, as VILA's released code does.
        epsilon: ε; 0.1 for relative and 1e-5 for the others if not given.
        centred: variance (True) or mean square (False) of the gradient; the method's own if not given.
        normalised: divide each layer's importance by its mean row sum. The row weights of `weighted_low_rank` then have
            mean square 1 whatever the scale of the importance, so that A0 and B0 start about equally large.
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
    if not 0 < epsilon < math.inf:
        raise InputError(
            Problem("epsilon", epsilon, "layers without retain gradient would divide by zero", "use a finite ε > 0")
        )
    if forget.mean.keys() != retain.mean.keys():
        odd = sorted(forget.mean.keys() ^ retain.mean.keys())
        raise InputError(
            Problem("retain", odd[:3], "moments of different parameters", "measure both on the same model")
        )
    retain = replace(retain, mean={name: retain.mean[name] for name in forget.mean})  # in the same order
    information = IMPORTANCE_METHODS[method]
    centred = information.centred if centred is None else centred
    importance = {}
    both = zip(information.fisher(forget, centred), information.fisher(retain, centred), strict=True)
    for (name, of_forget), (_, of_retain) in both:
        if smoothing == "per_token":
            of_forget, of_retain = of_forget.div_(forget.tokens), of_retain.div_(retain.tokens)
        floor = epsilon * of_retain.mean() if smoothing == "relative" else of_retain.new_tensor(epsilon)
        ratio = of_forget.div_(of_retain.add_(floor.clamp(min=torch.finfo(torch.float32).tiny)))
        if normalised:
            ratio.div_(_scale(ratio.sum(1)))
        importance[name] = ratio.sum(1) if rows else ratio
    return importance


def normalised_rows(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{module name: [out]} row sums with mean 1 in each layer: what `normalised` makes of them, afterwards."""
    return {name: rows / _scale(rows) for name, rows in importance.items()}


def _scale(rows: Tensor) -> Tensor:
    return rows.mean().clamp(min=torch.finfo(torch.float32).tiny)
