"""Run all LoRA adapters of a layer as one, in the base model's precision.

s₁·B₁ A₁ x + s₂·B₂ A₂ x + … = s₁ · [B₁, B₂·s₂/s₁, …] · [A₁; A₂; …] x takes two multiplications, however many adapters
there are. "unlearn" (A, B) and its offset (A₀, −B₀) become, with ΔA = A − A₀ and ΔB = B − B₀,

    B A − B₀ A₀ = ΔB A + B₀ ΔA = B ΔA + ΔB A₀.

What training has changed is then a sum of two small products, and not the difference of two large ones, of which
bfloat16 would keep little. At the start both are exactly zero. The forward pass computes ΔB A + B₀ ΔA and the backward
pass B ΔA + ΔB A₀, because A x and Bᵀδ are what the gradients of B and A are made from.

The factors are joined once per pass of the model, for all layers of the same shape together. The parameters stay as
they are, in float32 if the model has half precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from unlora.adapter.offset import lora_layers
from unlora.adapter.settings import OFFSET, UNLEARN


@contextmanager
def fused_adapters(model: PeftModel, training: bool = True) -> Iterator[None]:
    """Within, layers run their active adapters together and without dropout. Which are active may change meanwhile.

    Linear layers with plain LoRA do so. Others, such as those with DoRA, run as they always do.

    Args:
        model: with adapters.
        training: whether parameters may change meanwhile.
    """
    layers = [layer for _, layer in lora_layers(model) if _is_plain(layer)]
    joined = _JoinedFactors(layers)
    with ExitStack() as stack:
        if training:
            # Every pass begins at the embeddings. PEFT does not run the hooks of the model itself.
            embeddings = model.get_base_model().get_input_embeddings()
            stack.callback(embeddings.register_forward_pre_hook(lambda *_: joined.forget()).remove)
        for layer in layers:
            # On the instance, so that hooks of the layer and PEFT's own switches go on working.
            stack.callback(_restore_forward, layer, vars(layer).get("forward"))
            layer.forward = partial(_forward, layer, joined)
        yield


def _restore_forward(layer: LoraLayer, before: Callable[..., Tensor] | None) -> None:
    """Give a layer its own forward pass back, or that of fused adapters around these."""
    if before is None:
        del layer.forward
    else:
        layer.forward = before


def _is_plain(layer: LoraLayer) -> bool:
    """Return whether a layer is linear and its adapters add nothing but s·B A x, apart from its weight."""
    kinds = layer.lora_variant or any(layer.lora_bias.values()) or layer.merged
    return not kinds and isinstance(layer.get_base_layer(), (nn.Linear, Conv1D))


@dataclass(frozen=True)
class _Factors:
    """The joined factors of one layer.

    Args:
        a: [ranks, in], for the forward pass. That of "unlearn" comes first.
        b: [out, ranks], to be multiplied by the scaling.
        back_a: [ranks, in], for the backward pass: back_b · back_a = b · a.
        back_b: [out, ranks].
        scaling: that of the first adapter.
        rank: the rank of "unlearn", or 0 if it is not active.
    """

    a: Tensor
    b: Tensor
    back_a: Tensor
    back_b: Tensor
    scaling: float
    rank: int


class _JoinedFactors:
    """The joined factors of all layers, as they were when the model's last pass began."""

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        self._layers = layers
        self._known: dict[tuple[Any, ...], dict[LoraLayer, _Factors]] = {}

    def forget(self) -> None:
        """Join them anew when they are asked for: parameters may have changed."""
        self._known = {}

    def of(self, layer: LoraLayer, names: tuple[str, ...], dtype: torch.dtype) -> _Factors:
        """Return the factors of a layer's active adapters, and join those of all other layers in the same state."""
        if layer not in self._known.get((names, dtype), {}):
            alike = [other for other in self._layers if _active(other) == names]
            self._known[names, dtype] = _joined(alike, names, dtype)
        return self._known[names, dtype][layer]


def _active(layer: LoraLayer) -> tuple[str, ...]:
    """Return the active adapters of a layer, with "unlearn" and its offset first."""
    names = () if layer.disable_adapters else layer.active_adapters
    return tuple(sorted((name for name in names if name in layer.lora_A), key=[UNLEARN, OFFSET, *names].index))


@torch.no_grad()
def _joined(layers: Sequence[LoraLayer], names: tuple[str, ...], dtype: torch.dtype) -> dict[LoraLayer, _Factors]:
    """Return the joined factors of each layer. Layers whose factors have the same shapes are joined together."""
    alike: dict[tuple[Any, ...], list[LoraLayer]] = defaultdict(list)
    for layer in layers:
        shapes = [(layer.lora_A[name].weight.shape, layer.lora_B[name].weight.shape) for name in names]
        scalings = tuple(layer.scaling[name] for name in names)
        key = (layer.lora_A[names[0]].weight.device, scalings, *shapes)
        alike[key].append(layer)
    found: dict[LoraLayer, _Factors] = {}
    for (_, scalings, *_), group in alike.items():
        a = [torch.stack([layer.lora_A[name].weight for layer in group]) for name in names]
        b = [torch.stack([layer.lora_B[name].weight for layer in group]) for name in names]
        b = [part if s == scalings[0] else part * (s / scalings[0]) for part, s in zip(b, scalings, strict=True)]
        rank = a[0].shape[1] if names[0] == UNLEARN else 0
        sides = [(a, b), (a, b)]
        if names[:2] == (UNLEARN, OFFSET):  # the offset holds −B₀
            change_a, change_b = a[0] - a[1], b[0] + b[1]
            sides = [([a[0], change_a, *a[2:]], [change_b, -b[1], *b[2:]])]
            sides.append(([change_a, a[1], *a[2:]], [b[0], change_b, *b[2:]]))
        joined = [part for a, b in sides for part in (torch.cat(a, 1).to(dtype), torch.cat(b, 2).to(dtype))]
        for layer, *parts in zip(group, *joined, strict=True):
            whole_a, whole_b, back_a, back_b = parts
            found[layer] = _Factors(whole_a, whole_b, back_a, back_b, scalings[0], rank)
    return found


def _forward(layer: LoraLayer, joined: _JoinedFactors, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    result: Tensor = layer.get_base_layer()(inputs, *args, **kwargs)
    names = _active(layer)
    if not names:
        return result
    # Gradients in float16 would underflow, so there the adapter computes in float32, and the sum is rounded at the end.
    dtype = torch.float32 if result.dtype == torch.float16 else result.dtype
    factors = joined.of(layer, names, dtype)
    output = result.to(dtype)
    if output._is_view() or not output.is_contiguous():  # the adapters' part is added in place
        output = output.clone(memory_format=torch.contiguous_format)
    weights = [factor[UNLEARN].weight for factor in (layer.lora_A, layer.lora_B)] if factors.rank else [None, None]
    output = _AddAdapters.apply(output, inputs.to(dtype), factors, *weights)
    return output.to(result.dtype)


class _AddAdapters(torch.autograd.Function):
    """Adds s·b a x to the result of a layer. The gradients are those of "unlearn", which is part of a and b."""

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        inputs: Tensor,
        factors: _Factors,
        weight_a: Tensor | None,
        weight_b: Tensor | None,
    ) -> Tensor:
        """Return the sum [..., out] in place of the result, from inputs [..., in] of the same dtype."""
        device = result.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            hidden = inputs.flatten(0, -2) @ factors.a.T
            result.view(-1, result.shape[-1]).addmm_(hidden, factors.b.T, alpha=factors.scaling)
        ctx.mark_dirty(result)
        ctx.save_for_backward(inputs, hidden)
        ctx.factors = factors
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the result, the inputs and "unlearn"."""
        (inputs, hidden), factors = ctx.saved_tensors, ctx.factors
        rows = gradient.flatten(0, -2)
        of_hidden = _scaled_product(rows, factors.back_b, factors.scaling)
        of_inputs = (of_hidden @ factors.back_a).view_as(inputs) if ctx.needs_input_grad[1] else None
        of_a = of_b = None
        if ctx.needs_input_grad[3]:
            of_a = of_hidden[:, : factors.rank].T @ inputs.flatten(0, -2)
        if ctx.needs_input_grad[4]:
            of_b = _scaled_product(rows.T, hidden[:, : factors.rank], factors.scaling)
        return gradient, of_inputs, None, of_a, of_b


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """Return scaling · left @ right in one operation."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scaling)
