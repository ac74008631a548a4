"""VILA: the Fisher information of a weight, computed from the gradient variances of its LoRA factors.

Kim et al., "Improving Fisher Information Estimation and Efficiency for LoRA-based LLM Unlearning", COLM 2025
(arXiv 2508.21300). The method, in the order of this file:

1. Random factors A, B ~ N(0, σ²) are attached to every adapted weight (`attach_probe`).
2. The moments E[g] and E[g²] of both factors' gradients are measured on the forget and the retain set. The retain pass
   ends when the importance has converged (`retain_moments`).
3. V = max(E[g²] − E[g]², 0) is the variance of each factor's gradient (`Moments.variance`), and F_W = V_B · V_A the
   Fisher information of the weight (`fisher`).
4. The importance of a weight is F_forget / (ε + F_retain) (`importance_ratio`), summed over each row.

The factors A₀, B₀ are computed from the row importance as in FILA (`adapter/factorise.py`). docs/methods.md lists the
differences from the released code and their reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unlora.adapter import attach_factors, detach_adapters
from unlora.adapter.settings import UNLEARN, AdapterSettings
from unlora.common.errors import InputError, Problem
from unlora.data.padding import Batch
from unlora.importance.convergence import stability
from unlora.importance.initialiser import RATIO_SETTINGS, Initialiser, Measurement
from unlora.importance.moments import Moments, gradient_moments
from unlora.importance.ratio import importance_ratio
from unlora.settings import ImportanceConfig

logger = logging.getLogger(__name__)

# The number of retain examples before the first check for convergence. It doubles before each further check.
FIRST_CHECK = 128


def row_importance(measurement: Measurement) -> dict[str, Tensor]:
    """Return {module name: [out]}, measured on the forget set and on as much of the retain sample as is needed."""
    config = measurement.config
    probe = attach_probe(
        measurement.model, measurement.adapter, config.sigma, config.importance_seed, offset=config.probe_offset
    )

    def moments(batches: Iterable[Batch]) -> Moments:
        return gradient_moments(probe, batches, config.moments_per, all_processes=True, limit=measurement.limit)

    def importance(of_retain: Moments) -> dict[str, Tensor]:
        return importance_ratio(fisher, of_forget, of_retain, rows=True, **VILA.ratio(config))

    try:
        of_forget = moments(measurement.forget())
        if config.stops_at is None:
            of_retain = moments(measurement.retain())
        else:
            of_retain = retain_moments(
                lambda part: moments(measurement.retain(part)), measurement.retain_size, importance, config.stops_at
            )
    finally:
        detach_adapters(probe)
    return importance(of_retain)


def attach_probe(
    base: nn.Module,
    config: AdapterSettings,
    sigma: float = ImportanceConfig.sigma,
    seed: int = ImportanceConfig.importance_seed,
    *,
    offset: bool = True,
) -> PeftModel:
    """Attach random factors A, B ~ N(0, σ²), at which the gradients are measured. `detach_adapters` removes them.

    LoRA's usual initialisation cannot be used, because the gradient of A is 0 if B is 0. With `offset`, a second
    adapter cancels the random product, so that the gradients are those of the original model, including its earlier
    adapters. Without it, the random product changes the model, as in the released code.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, layer: LoraLayer) -> tuple[Tensor, Tensor]:
        a, b = (
            torch.randn(factor[UNLEARN].weight.shape, generator=generator).mul_(sigma)
            for factor in (layer.lora_A, layer.lora_B)
        )
        return a, b

    return attach_factors(base, config, draw, offset=offset)


def fisher(moments: Moments, centred: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield (module name in the base model, F_W = V_B · V_A), [out, rank] · [rank, in] = [out, in].

    V is the variance of the gradient of a LoRA factor, or its mean square E[g²] if not `centred`. The Fisher
    information is the variance of the score. It equals E[g²] only if E[g] = 0, which holds for data sampled from the
    model itself, but not for a forget set.
    """
    if not all(".lora_" in name for name in moments.mean):
        reason, fix = "these are moments of whole weights", "measure LoRA factors, or use method='fila'"
        raise InputError(Problem("forget", next(iter(moments.mean)), reason, fix))
    for name_a in moments.mean:
        module, factor, tail = name_a.partition(".lora_A.")
        if factor:
            v_b = moments.information(f"{module}.lora_B.{tail}", centred)
            v_a = moments.information(name_a, centred)
            yield module.removeprefix("base_model.model."), v_b @ v_a  # the prefix comes from PEFT's wrapper


def retain_moments(
    measure: Callable[[slice], Moments],
    size: int,
    importance: Callable[[Moments], Mapping[str, Tensor]],
    threshold: float,
) -> Moments:
    """Measure the retain sample, or as much of it as the importance needs to converge (not in the paper).

    The moments of the first 128 examples are measured in two halves. While the `stability` of the importances from the
    two halves is below `threshold`, the number of examples is doubled (256, 512, ...).

    Args:
        measure: returns the moments of a slice of the sample.
        size: the number of examples in the sample.
        importance: moments of the retain set -> {module name: [out]}.
        threshold: the estimated correlation with the importance from unlimited data that is sufficient, below 1.

    Returns:
        The moments over all examples that were measured.
    """
    if size <= FIRST_CHECK:
        return measure(slice(0, size))
    # The halves alternate between examples, so that they do not depend on the order of the data.
    halves = [measure(slice(half, FIRST_CHECK, 2)) for half in (0, 1)]
    stop = FIRST_CHECK
    while stop < size:
        reached = stability(*map(importance, halves))
        if reached >= threshold:
            logger.info("the importance has converged after %d of %d retain examples (%.3f)", stop, size, reached)
            break
        start, stop = stop, min(2 * stop, size)
        for half in range(min(2, stop - start)):
            halves[half] += measure(slice(start + half, stop, 2))
    return halves[0] + halves[1]


VILA = Initialiser(
    row_importance,
    "F = V_B · V_A, V = max(E[g²] − E[g]², 0) of each LoRA factor's gradient at A, B ~ N(0, σ²)",
    "Kim et al., COLM 2025 (arXiv 2508.21300)",
    reads=("sigma", "probe_offset", "retain_convergence", *RATIO_SETTINGS),
    uses_data=True,
    fisher=fisher,
    centred=True,
)
