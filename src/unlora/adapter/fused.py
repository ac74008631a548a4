"""Run all LoRA adapters of a layer as one adapter, in the base model's precision.

s₁·B₁ A₁ x + s₂·B₂ A₂ x + … = s₁ · [B₁, B₂·s₂/s₁, …] · [A₁; A₂; …] x takes two multiplications, however many adapters
there are. "unlearn" (A, B) and its offset (A₀, −B₀) become, with ΔA = A − A₀ and ΔB = B − B₀,

    B A − B₀ A₀ = ΔB A + B₀ ΔA = B ΔA + ΔB A₀.

The change from training is then the sum of two small products instead of the difference of two large ones, which would
lose most of its digits in bfloat16. At the start both products are exactly zero. The forward pass computes ΔB A + B₀ ΔA
and the backward pass B ΔA + ΔB A₀, because the gradient of B needs A x, and the gradient of A needs Bᵀδ, where δ is the
gradient of the layer's output.

The factors are joined once per forward pass of the model, for all layers of the same shape together. The parameters
themselves are not changed; they are float32 if the model has half precision.
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
    """Fuse the active adapters of each layer, without dropout, within this context.

    The set of active adapters may change within the context. Only linear layers with plain LoRA are fused. Others, such
    as those with DoRA, run as usual.

    Args:
        model: the model with adapters.
        training: whether parameters may change within the context.
    """
    layers = [layer for _, layer in lora_layers(model) if _is_plain(layer)]
    joined = _JoinedFactors(layers)
    with ExitStack() as stack:
        if training:
            # Every forward pass begins at the embeddings. PEFT bypasses the hooks of the model itself.
            embeddings = model.get_base_model().get_input_embeddings()
            stack.callback(embeddings.register_forward_pre_hook(lambda *_: joined.clear()).remove)
        for layer in layers:
            # Patched on the instance, so that hooks of the layer and PEFT's own switches keep working.
            stack.callback(_restore_forward, layer, vars(layer).get("forward"))
            layer.forward = partial(_forward, layer, joined)
        yield


def _restore_forward(layer: LoraLayer, before: Callable[..., Tensor] | None) -> None:
    """Restore the forward pass of a layer: its own, or the one from an enclosing `fused_adapters`."""
    if before is None:
        del layer.forward
    else:
        layer.forward = before


def _is_plain(layer: LoraLayer) -> bool:
    """Return whether a layer is linear and its adapters are unmerged and add only s·B A x."""
    special = layer.lora_variant or any(layer.lora_bias.values()) or layer.merged
    return not special and isinstance(layer.get_base_layer(), (nn.Linear, Conv1D))


@dataclass(frozen=True)
class _Factors:
    """The joined factors of one layer.

    Args:
        a: [ranks, in], for the forward pass. The rows of "unlearn" come first.
        b: [out, ranks], for the forward pass, without the scaling.
        back_a: [ranks, in], for the backward pass: back_b · back_a = b · a.
        back_b: [out, ranks], for the backward pass.
        scaling: the scaling of the first adapter, which the other adapters' factors are adjusted to.
        rank: the rank of "unlearn", or 0 if it is not active.
    """

    a: Tensor
    b: Tensor
    back_a: Tensor
    back_b: Tensor
    scaling: float
    rank: int


class _JoinedFactors:
    """A cache of the joined factors of all layers, valid for one forward pass of the model."""

    def __init__(self, layers: Sequence[LoraLayer]) -> None:
        self._layers = layers
        self._cache: dict[tuple[Any, ...], dict[LoraLayer, _Factors]] = {}

    def clear(self) -> None:
        """Clear the cache, because parameters may have changed."""
        self._cache = {}

    def of(self, layer: LoraLayer, names: tuple[str, ...], dtype: torch.dtype) -> _Factors:
        """Return the joined factors of a layer, computed for all layers with the same active adapters at once."""
        if layer not in self._cache.get((names, dtype), {}):
            alike = [other for other in self._layers if _active(other) == names]
            self._cache[names, dtype] = _joined(alike, names, dtype)
        return self._cache[names, dtype][layer]


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
    # Gradients in float16 would underflow, so a float16 model's adapters run in float32, and only their sum is rounded.
    dtype = torch.float32 if result.dtype == torch.float16 else result.dtype
    factors = joined.of(layer, names, dtype)
    output = result.to(dtype)
    if output._is_view() or not output.is_contiguous():  # the adapters' part is added in place
        output = output.clone(memory_format=torch.contiguous_format)
    weights = [factor[UNLEARN].weight for factor in (layer.lora_A, layer.lora_B)] if factors.rank else [None, None]
    output = _AddAdapters.apply(output, inputs.to(dtype), factors, *weights)
    return output.to(result.dtype)


class _AddAdapters(torch.autograd.Function):
    """Add s·b a x to the output of a layer. Its parameters are the factors of "unlearn", which are part of a and b."""

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        inputs: Tensor,
        factors: _Factors,
        weight_a: Tensor | None,
        weight_b: Tensor | None,
    ) -> Tensor:
        """Add s·b a x to `result` [..., out] in place, given inputs [..., in] of the same dtype."""
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
        """Return the gradients of the result, the inputs and the factors of "unlearn"."""
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
