"""The offset adapter: start LoRA anywhere without touching the base weights.

Two adapters are added, y = W x + s·B A x − s·B0 A0 x: "unlearn" starts at (A0, B0) and is trained, "offset" holds
(A0, −B0) and is frozen. At step 0 they cancel and the model is what it was; with both off it is that at any time. A
plain LoRA start (B = 0) has nothing to cancel and no offset. Adapters that the model already carries stay and act,
frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unlora.adapter.factorise import weighted_low_rank
from unlora.adapter.settings import OFFSET, UNLEARN, AdapterSettings, check_adapter_settings, target_shapes
from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.progress import bar
from unlora.models.sharding import whole

Factors = Callable[[str, LoraLayer], tuple[Tensor, Tensor]]


def attach_adapters(
    base: nn.Module, config: AdapterSettings, importance: Mapping[str, Tensor] | None = None
) -> PeftModel:
    """Adds the trainable "unlearn" adapter to `base`, and the "offset" that cancels its start.

    Args:
        base: a transformers causal language model; its weights are never changed. It may be quantised. Or a `PeftModel`
            with LoRA adapters, from an earlier request or a fine-tune: the active ones stay active, frozen and without
            dropout, and `export_adapter` writes them too.
        config: an `UnlearnConfig` or a `peft.LoraConfig` (r, lora_alpha, use_rslora, target_modules and the patterns of
            rank and alpha are read).
        importance: {module name in the base: [out, in] importance or [out] row sums} for every adapted module. None
            starts as plain LoRA does, A Kaiming-uniform and B = 0, without an offset; A is drawn from torch's global
            generator, so the same `torch.manual_seed` gives the same start.

    Returns:
        A PEFT model (`base` itself, if it is one) with all these adapters active and only "unlearn" trainable.

    Raises:
        InputError: settings that `check_adapter_settings` refuses, a module without importance, or no importance
            above zero.
    """
    if importance is None:
        return attach_factors(base, config, None, offset=False)
    if importance and not any(bool(values.any()) for values in importance.values()):
        reason = "it is zero everywhere, so all factors would start at zero and never get a gradient"
        fix = "measure it on at least two different forget examples"
        raise InputError(Problem("importance", f"{len(importance)} modules", reason, fix))

    def factors(name: str, layer: LoraLayer) -> tuple[Tensor, Tensor]:
        if name not in importance:
            reason = f"it has no entry for the adapted module {name!r}"
            raise InputError(
                Problem("importance", f"{len(importance)} modules", reason, "compute it with these target_modules")
            )
        return weighted_low_rank(base_weight(layer), importance[name], layer.r[UNLEARN], layer.scaling[UNLEARN])

    return attach_factors(base, config, factors, offset=True)


def detach_adapters(model: PeftModel) -> nn.Module:
    """What `attach_adapters` or `attach_factors` was given: their adapters are gone, earlier ones stay."""
    ours, earlier = [name for name in (UNLEARN, OFFSET) if name in model.peft_config], earlier_adapters(model)
    if len(ours) == len(model.peft_config):
        return model.unload()
    model.base_model.set_adapter(earlier, inference_mode=True)
    for name in ours:
        model.delete_adapter(name)
    inner = model.get_base_model()
    for name, layer in lora_layers(model):
        if not layer.lora_A:
            inner.set_submodule(name, layer.get_base_layer())
    return model


def attach_factors(base: nn.Module, config: AdapterSettings, factors: Factors | None, *, offset: bool) -> PeftModel:
    """Add "unlearn", and "offset" if wanted, with given factors.

    Args:
        base: as for `attach_adapters`.
        config: as for `attach_adapters`.
        factors: (module name in the base, layer) -> A [rank, in] and B [out, rank]; None for a plain LoRA start.
        offset: whether a frozen adapter cancels these factors.
    """
    raise_if(check_adapter_settings(base, config))
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    earlier = list(base.active_adapters) if isinstance(base, PeftModel) else []
    everything = config.target_modules in (None, "all-linear")
    settings = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "rank_pattern": getattr(config, "rank_pattern", {}),
        "alpha_pattern": getattr(config, "alpha_pattern", {}),
        "target_modules": list(target_shapes(base, None)) if everything else config.target_modules,
        "fan_in_fan_out": _stores_transposed(inner),
        "base_model_name_or_path": getattr(inner, "name_or_path", None) or None,
        "task_type": "CAUSAL_LM",
    }
    if isinstance(base, PeftModel):
        model = base
        model.add_adapter(UNLEARN, LoraConfig(**settings))
    else:
        model = get_peft_model(base, LoraConfig(**settings), adapter_name=UNLEARN)
    if offset:
        model.add_adapter(OFFSET, LoraConfig(**settings))
    model.base_model.set_adapter([UNLEARN, OFFSET, *earlier] if offset else [UNLEARN, *earlier])
    freeze_others(model)
    for name, layer in bar(lora_layers(model), desc="start of the adapter", unit=" layers"):
        layer.lora_dropout.update({other: nn.Identity() for other in earlier if other in layer.lora_dropout})
        if factors and UNLEARN in layer.lora_A:
            _start_at(layer, *factors(name, layer))
    return model


def _stores_transposed(base: nn.Module) -> bool:
    """Whether the linear layers are GPT-2's Conv1D, which PEFT wants to be told."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in base.modules())


@torch.no_grad()
def _start_at(layer: LoraLayer, a0: Tensor, b0: Tensor) -> None:
    """Sets the adapters. The offset copies what "unlearn" stored, after its cast, so that both halves cancel."""
    layer.lora_A[UNLEARN].weight.copy_(a0)
    layer.lora_B[UNLEARN].weight.copy_(b0)
    if OFFSET in layer.lora_A:
        layer.lora_A[OFFSET].weight.copy_(layer.lora_A[UNLEARN].weight)
        layer.lora_B[OFFSET].weight.copy_(-layer.lora_B[UNLEARN].weight)


def cancels(layer: LoraLayer) -> bool:
    """Whether "unlearn" and "offset" are both active and exact opposites, as at the start and in a probe."""
    active = layer.active_adapters
    return (
        all(name in active and name in layer.lora_A for name in (UNLEARN, OFFSET))
        and torch.equal(layer.lora_A[UNLEARN].weight, layer.lora_A[OFFSET].weight)
        and torch.equal(layer.lora_B[UNLEARN].weight, -layer.lora_B[OFFSET].weight)
    )


@contextmanager
def without_request(layer: LoraLayer) -> Iterator[None]:
    """Within, only earlier adapters act in this layer."""
    active, trainable = list(layer.active_adapters), {p: p.requires_grad for p in layer.parameters()}
    layer.set_adapter([name for name in active if name not in (UNLEARN, OFFSET)], inference_mode=True)
    try:
        yield
    finally:
        layer.set_adapter(active)
        for parameter, value in trainable.items():
            parameter.requires_grad_(value)


@torch.no_grad()
def base_weight(layer: LoraLayer) -> Tensor:
    """The weight that acts before this request, W + Σ s·B·A over the earlier adapters, as [out, in] floats.

    De-quantised if need be, and whichever way the layer stores it.
    """
    weight = dequantised(layer.get_base_layer())
    weight = weight.T if getattr(layer, "fan_in_fan_out", False) else weight  # Conv1D stores [in, out]
    for name in layer.active_adapters:
        if name not in (UNLEARN, OFFSET) and name in layer.lora_A:
            weight = weight + layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
    return weight


def dequantised(module: Any) -> Tensor:
    """The weight of a linear layer as floats, as the layer stores it; the layer is left as it is."""
    from peft.utils.integrations import dequantize_module_weight

    state = getattr(module, "state", None)
    if state is not None and hasattr(state, "SCB"):  # 8 bits: PEFT's way loses the scales of layers on the CPU
        scales = module.weight.SCB if state.SCB is None else state.SCB  # a layer takes them over when it first runs
        return module.weight.data * (scales[:, None].float() / 127)
    return whole(dequantize_module_weight(module))


def lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """Every layer that some adapter adapts, with its module name in the base model."""
    inner = model.get_base_model()
    return [(name, module) for name, module in inner.named_modules() if isinstance(module, LoraLayer)]


def earlier_adapters(model: PeftModel) -> list[str]:
    """The active adapters that were there before this request."""
    return [name for name in model.active_adapters if name not in (UNLEARN, OFFSET)]


def freeze_others(model: PeftModel) -> None:
    """Leaves only "unlearn" trainable. PEFT unfreezes every active adapter in `set_adapter` and `disable_adapter`."""
    for name, parameter in model.named_parameters():
        if f".{UNLEARN}." not in name:
            parameter.requires_grad_(False)


@contextmanager
def reference_model(model: PeftModel) -> Iterator[None]:
    """Within, the model is what it was before this request: only earlier adapters act; no gradients, no dropout."""
    active, was_training = list(model.active_adapters), [module for module in model.modules() if module.training]
    model.eval()
    model.base_model.set_adapter(earlier_adapters(model), inference_mode=True)
    try:
        with torch.no_grad():
            yield
    finally:
        model.base_model.set_adapter(active)
        freeze_others(model)
        for module in was_training:
            module.training = True
