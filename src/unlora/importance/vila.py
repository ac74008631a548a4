"""VILA: the Fisher information of a weight, computed from the gradient variances of its LoRA factors.

Kim et al., "Improving Fisher Information Estimation and Efficiency for LoRA-based LLM Unlearning", COLM 2025
(arXiv 2508.21300). The method, in the order of this file:

1. Random factors A, B ~ N(0, σ²) are attached to every adapted weight (`attach_probe`).
2. The moments E[g] and E[g²] of both factors' gradients are measured on the forget set and on a retain sample.
3. V = max(E[g²] − E[g]², 0) is the variance of each factor's gradient (`Moments.variance`), and F_W = V_B · V_A the
   Fisher information of the weight (`fisher`).
4. The importance of a weight is F_forget / (ε + F_retain) (`importance_ratio`), summed over each row.

The factors A₀, B₀ are computed from the row importance as in FILA (`adapter/factorise.py`). docs/methods.md lists the
differences from the released code and their reasons.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unlora.adapter import attach_factors, detach_adapters
from unlora.adapter.settings import UNLEARN, AdapterSettings
from unlora.common.errors import InputError, Problem
from unlora.importance.initialiser import RATIO_SETTINGS, Initialiser, Measurement
from unlora.importance.moments import Moments, gradient_moments
from unlora.importance.ratio import importance_ratio
from unlora.settings import ImportanceConfig


def row_importance(measurement: Measurement) -> dict[str, Tensor]:
    """Return {module name: [out]}, measured on the forget set and on the retain sample."""
    config = measurement.config
    probe = attach_probe(
        measurement.model, measurement.adapter, config.sigma, config.importance_seed, offset=config.probe_offset
    )
    try:
        of_forget, of_retain = (
            gradient_moments(probe, batches(), config.moments_per, all_processes=True, limit=measurement.limit)
            for batches in (measurement.forget, measurement.retain)
        )
    finally:
        detach_adapters(probe)
    return importance_ratio(fisher, of_forget, of_retain, rows=True, **VILA.ratio(config))


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


VILA = Initialiser(
    row_importance,
    "F = V_B · V_A, V = max(E[g²] − E[g]², 0) of each LoRA factor's gradient at A, B ~ N(0, σ²)",
    "Kim et al., COLM 2025 (arXiv 2508.21300)",
    reads=("sigma", "probe_offset", *RATIO_SETTINGS),
    uses_data=True,
    fisher=fisher,
    centred=True,
)
