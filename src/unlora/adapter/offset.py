"""The offset adapter: initialise LoRA at any factors without changing the base weights.

Two adapters are added, y = W x + s·B A x − s·B₀ A₀ x: "unlearn" starts at (A₀, B₀) and is trained, "offset" holds
(A₀, −B₀) and is frozen. At step 0 they cancel, and the model equals the original. With both disabled it equals the
original at any time. A plain LoRA start (B = 0) has nothing to cancel and needs no offset. Adapters that the model
already has stay active but frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unlora.adapter.factorise import weighted_low_rank
from unlora.adapter.settings import OFFSET, UNLEARN, AdapterSettings, check_adapter_settings, rank_patterns
from unlora.adapter.targets import is_everything, target_shapes, text_prefix
from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.progress import bar
from unlora.models.load import START
from unlora.models.sharding import whole


def attach_adapters(
    base: nn.Module, config: AdapterSettings, importance: Mapping[str, Tensor] | None = None
) -> PeftModel:
    """Add the trainable "unlearn" adapter to `base`, and the "offset" that cancels its start.

    Args:
        base: a transformers causal language model, possibly quantised; its weights are never changed. Or a `PeftModel`
            with LoRA adapters from an earlier request or a fine-tune: the active ones stay active, frozen and without
            dropout, and `export_adapter` writes them too.
        config: an `UnlearnConfig` or a `peft.LoraConfig` (r, lora_alpha, use_rslora, target_modules and the patterns of
            rank and alpha are read).
        importance: {module name in the base: [out, in] importance or [out] row sums} for every adapted module. None
            initialises plain LoRA, with A Kaiming-uniform and B = 0, and without an offset. A is then drawn from
            torch's global generator, so the same `torch.manual_seed` gives the same start.

    Returns:
        A PEFT model (`base` itself if it is one) with all these adapters active and only "unlearn" trainable.

    Raises:
        InputError: `check_adapter_settings` reports a problem, an adapted module has no importance, or the importance
            is zero everywhere.
    """
    if importance is None:
        return attach_factors(base, config, None, offset=False)
    if importance and not any(bool(values.any()) for values in importance.values()):
        # Each factor's gradient is a product with the other factor, so at (0, 0) neither would ever change.
        reason = "it is zero everywhere, so all factors would start at zero and never get a gradient"
        fix = "measure it on at least two different forget examples"
        raise InputError(Problem("importance", f"{len(importance)} modules", reason, fix))

    def factors(name: str, layer: LoraLayer) -> tuple[Tensor, Tensor]:
        if name not in importance:
            reason, fix = f"it has no entry for the adapted module {name!r}", "compute it with these target_modules"
            raise InputError(Problem("importance", f"{len(importance)} modules", reason, fix))
        return weighted_low_rank(base_weight(layer), importance[name], layer.r[UNLEARN], layer.scaling[UNLEARN])

    return attach_factors(base, config, factors, offset=True)


def attach_factors(
    base: nn.Module,
    config: AdapterSettings,
    factors: Callable[[str, LoraLayer], tuple[Tensor, Tensor]] | None,
    *,
    offset: bool,
) -> PeftModel:
    """Add "unlearn", initialised at the given factors, and with `offset` the frozen adapter that cancels them.

    Args:
        base: as for `attach_adapters`.
        config: as for `attach_adapters`.
        factors: (module name in the base, layer) -> A [rank, in] and B [out, rank]. None for a plain LoRA start.
        offset: whether to add the offset.

    Raises:
        InputError: `check_adapter_settings` reports a problem.
    """
    raise_if(check_adapter_settings(base, config))
    earlier = list(base.active_adapters) if isinstance(base, PeftModel) else []
    lora_config, offset_config = (_lora_config(base, config) for _ in range(2))  # PEFT may modify its argument
    if isinstance(base, PeftModel):
        model = base
        model.add_adapter(UNLEARN, lora_config)
    else:
        model = get_peft_model(base, lora_config, adapter_name=UNLEARN)
    if offset:
        model.add_adapter(OFFSET, offset_config)
    model.base_model.set_adapter([UNLEARN, *([OFFSET] if offset else []), *earlier])
    freeze_others(model)
    for name, layer in bar(lora_layers(model), desc="initialising the adapter", unit=" layers"):
        # Earlier adapters run without dropout, because the export contains them without it.
        layer.lora_dropout.update({other: nn.Identity() for other in earlier if other in layer.lora_dropout})
        if factors and UNLEARN in layer.lora_A:
            _start_at(layer, *factors(name, layer))
    return model


def _lora_config(base: nn.Module, config: AdapterSettings) -> LoraConfig:
    """Return the PEFT settings for "unlearn" and "offset"."""
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    targets = target_shapes(base, config.target_modules)
    ranks, alphas = rank_patterns(config, targets)
    # In a vision-language model, short names would also match layers of the vision part.
    whole_names = is_everything(config.target_modules) or bool(text_prefix(base))
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_modules=list(targets) if whole_names else config.target_modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in inner.modules()),  # GPT-2 stores [in, out]
        base_model_name_or_path=getattr(inner, "name_or_path", None) or None,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def _start_at(layer: LoraLayer, a0: Tensor, b0: Tensor) -> None:
    """Set "unlearn" to the factors, and "offset" to their exact opposite.

    The offset is copied from the stored weights of "unlearn", not from the float32 factors, so that both have the same
    rounding errors in a half-precision model.
    """
    layer.lora_A[UNLEARN].weight.copy_(a0)
    layer.lora_B[UNLEARN].weight.copy_(b0)
    if OFFSET in layer.lora_A:
        layer.lora_A[OFFSET].weight.copy_(layer.lora_A[UNLEARN].weight)
        layer.lora_B[OFFSET].weight.copy_(-layer.lora_B[UNLEARN].weight)


def detach_adapters(model: PeftModel) -> nn.Module:
    """Undo `attach_adapters` or `attach_factors`, and return the model that it was given. Earlier adapters stay."""
    ours, earlier = [name for name in (UNLEARN, OFFSET) if name in model.peft_config], _earlier_adapters(model)
    if len(ours) == len(model.peft_config):
        return model.unload()
    model.base_model.set_adapter(earlier, inference_mode=True)
    for name in ours:
        model.delete_adapter(name)
    inner = model.get_base_model()
    for name, layer in lora_layers(model):
        if not layer.lora_A:  # PEFT does not remove its wrapper from layers without adapters
            inner.set_submodule(name, layer.get_base_layer())
    return model


def cancels(layer: LoraLayer) -> bool:
    """Return whether "unlearn" and "offset" are active and exact opposites, as at the start of training."""
    active = layer.active_adapters
    return (
        all(name in active and name in layer.lora_A for name in (UNLEARN, OFFSET))
        and torch.equal(layer.lora_A[UNLEARN].weight, layer.lora_A[OFFSET].weight)
        and torch.equal(layer.lora_B[UNLEARN].weight, -layer.lora_B[OFFSET].weight)
    )


@contextmanager
def without_request(layer: LoraLayer) -> Iterator[None]:
    """Deactivate "unlearn" and "offset" in this layer within the context; earlier adapters stay active."""
    active, trainable = list(layer.active_adapters), {p: p.requires_grad for p in layer.parameters()}
    layer.set_adapter([name for name in active if name not in (UNLEARN, OFFSET)], inference_mode=True)
    try:
        yield
    finally:
        layer.set_adapter(active)  # which makes all of them trainable
        for parameter, value in trainable.items():
            parameter.requires_grad_(value)


@contextmanager
def reference_model(model: PeftModel) -> Iterator[None]:
    """Turn the model into the one before this request within the context, without dropout or gradients.

    Only the earlier adapters are active. This is the reference model of NPO, DPO and KL losses, which therefore need no
    second copy of the model.
    """
    active, was_training = list(model.active_adapters), [module for module in model.modules() if module.training]
    model.eval()
    model.base_model.set_adapter(_earlier_adapters(model), inference_mode=True)
    try:
        with torch.no_grad():
            yield
    finally:
        model.base_model.set_adapter(active)
        freeze_others(model)
        # Not `model.train()`: some modules may have been in evaluation mode before.
        for module in was_training:
            module.training = True


def freeze_others(model: PeftModel) -> None:
    """Freeze all parameters except those of "unlearn".

    PEFT makes every active adapter trainable in `set_adapter` and on leaving `disable_adapter`. A trained offset would
    no longer cancel the start of "unlearn".
    """
    for name, parameter in model.named_parameters():
        if f".{UNLEARN}." not in name:
            parameter.requires_grad_(False)


@torch.no_grad()
def base_weight(layer: LoraLayer) -> Tensor:
    """Return the effective weight before this request, W + Σ s·B·A over the earlier adapters, [out, in].

    Quantised weights are dequantised, and weights stored as [in, out] are transposed.
    """
    weight = _dequantised(layer.get_base_layer())
    weight = weight.T if getattr(layer, "fan_in_fan_out", False) else weight  # Conv1D stores [in, out]
    for name in layer.active_adapters:
        if name not in (UNLEARN, OFFSET) and name in layer.lora_A:
            weight = weight + layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
    return weight


def _dequantised(module: Any) -> Tensor:
    """Return the weight of a linear layer in floating point, in the layer's own layout."""
    state = getattr(module, "state", None)
    if state is not None and hasattr(state, "SCB"):  # 8 bits: PEFT's function loses the scales on the CPU
        scales = module.weight.SCB if state.SCB is None else state.SCB  # the first forward pass moves it to the state
        return module.weight.data * (scales[:, None].float() / 127)
    return whole(dequantize_module_weight(module))


def lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """Return every layer that has an adapter, with its module name in the base model."""
    inner = model.get_base_model()
    return [(name, module) for name, module in inner.named_modules() if isinstance(module, LoraLayer)]


def _earlier_adapters(model: PeftModel) -> list[str]:
    return [name for name in model.active_adapters if name not in (UNLEARN, OFFSET)]


@contextmanager
def original_model(model: nn.Module) -> Iterator[nn.Module]:
    """Turn the model into the original within the context: only the adapter it was loaded with, if any, is active."""
    if not isinstance(model, PeftModel):
        yield model
    elif UNLEARN in model.peft_config:
        with reference_model(model):
            yield model
    elif START in model.peft_config:
        active = list(model.active_adapters)
        model.base_model.set_adapter([START], inference_mode=True)
        try:
            yield model
        finally:
            model.base_model.set_adapter(active, inference_mode=True)
    else:
        with model.disable_adapter():
            yield model
