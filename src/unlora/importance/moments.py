"""Exact first and second moments of per-example gradients of linear maps, for many examples in one backward pass.

A LoRA factor is a linear map h = M x, and so is a whole weight. Its gradient for example i is Σ_t δ_t x_tᵀ over the
example's own tokens, where δ_t is the gradient of h_t. So the gradient of every single example can be computed from the
inputs x and output gradients δ of a batch. A tap on the map does so in the backward pass and adds the result to the
moments, so that no gradient has to be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from unlora.adapter.offset import cancels, without_request
from unlora.adapter.settings import UNLEARN
from unlora.adapter.targets import base_modules, linear_shape
from unlora.common.distributed import add_up, gather, in_lockstep, together
from unlora.common.errors import InputError, Problem, unknown_name
from unlora.data.batching import BatchLimit
from unlora.importance.gradient_buffer import GradientBuffer, add_moments
from unlora.importance.taps import Tap, tapped
from unlora.models.batches import out_of_memory
from unlora.models.forward import labelled_tokens
from unlora.settings import GRANULARITIES

# The largest number of elements of the gradients [examples, out, in] that are computed at a time (256 MiB).
BLOCK_SIZE = 2**26


@dataclass
class Moments:
    """First and second moment of the gradient g_i of example i's mean-token loss, weighted by its n_i labelled tokens.

    Args:
        mean: {parameter name: Σ n_i g_i / Σ n_i}, [out, in], float32.
        second: {parameter name: Σ n_i g_i² / Σ n_i}, [out, in], float32.
        tokens: Σ n_i.
        examples: the number of g_i.
    """

    mean: dict[str, Tensor]
    second: dict[str, Tensor]
    tokens: int
    examples: int

    def variance(self, name: str) -> Tensor:
        """Return max(E[g²] − E[g]², 0) of one parameter, [out, in]. Rounding alone can make the difference negative."""
        return (self.second[name] - self.mean[name].square()).clamp_(min=0)

    def information(self, name: str, centred: bool) -> Tensor:
        """Return the variance of one parameter's gradient, or E[g²] if not `centred`, as a new tensor [out, in]."""
        return self.variance(name) if centred else self.second[name].clone()


def gradient_moments(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    per: str = "example",
    *,
    weights: Sequence[str] | None = None,
    all_processes: bool = False,
    limit: BatchLimit | None = None,
) -> Moments:
    """Return the moments of the gradient of each trainable LoRA factor over `batches`, at the model's current weights.

    The model runs without dropout and is not changed. Layers for which gradient checkpointing is enabled use it here
    too. Apart from the model and its activations, only the moments take memory.

    Args:
        model: a PEFT LoRA model, of which all factors that require a gradient are measured; with `weights`, any
            causal LM.
        batches: dicts of input_ids, attention_mask and labels, each [examples, length], padded on either side. Labels
            are shifted here, and −100 is ignored.
        per: "example" for one gradient per example; "batch" for one per batch, of the mean-token loss over all its
            examples, as in the released code of VILA and FILA.
        weights: names of linear modules whose whole weights are measured instead (FILA). This takes two float32 copies
            of these weights, so large models are measured a few layers at a time.
        all_processes: in a job of several processes, return the moments over the batches of all processes. Each process
            calls this with its own batches, possibly none.
        limit: the limit that the batches follow, if they can be iterated again. If a batch does not fit in memory, the
            limit is halved and the measurement starts again.

    Returns:
        `Moments` on the parameters' device. The keys are the factors' names in `model.named_parameters()`, or
        "<module>.weight" for whole weights, always as [out, in].

    Raises:
        InputError: no factor to measure, no labelled token, an unknown `per`, or a module that does not keep the
            examples of a batch apart.

    Source: Kim et al., COLM 2025 (arXiv 2508.21300); Cha et al., ICLR 2025 (arXiv 2408.06621) for whole weights.
    """
    if per not in GRANULARITIES:
        raise InputError(unknown_name("per", per, GRANULARITIES))
    taps = _factor_taps(model) if weights is None else _weight_taps(model, weights)
    if not taps:
        reason, fix = "no LoRA factor requires a gradient", "give a PEFT model with a trainable LoRA adapter"
        raise InputError(Problem("model", type(model).__name__, reason, fix))
    counted = torch.zeros(2, dtype=torch.long, device=next(iter(taps.values())).mean.device)  # tokens and examples
    with (
        together() if all_processes else nullcontext(),
        _without_cancelled_adapters(model, taps) as (listeners, buffer),
        tapped(model, listeners),
    ):
        while not _all_added(model, batches, per, listeners, buffer, counted, limit):
            for sums in (counted, *(part for tap in taps.values() for part in (tap.mean, tap.second))):
                sums.zero_()
    tokens, examples = counted.tolist()
    if all_processes and not in_lockstep():
        tokens, examples = (sum(numbers) for numbers in zip(*gather((tokens, examples)), strict=True))
        add_up(part for tap in taps.values() for part in (tap.mean, tap.second))
    if not tokens:
        reason, fix = "without a labelled token there is no loss", "check the labels"
        raise InputError(Problem("batches", "0 labelled tokens", reason, fix))
    mean = {name: tap.mean.div_(tokens) for name, tap in taps.items()}
    return Moments(mean, {name: tap.second.div_(tokens) for name, tap in taps.items()}, tokens, examples)


def _all_added(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    per: str,
    taps: Sequence[Tap],
    buffer: GradientBuffer | None,
    counted: Tensor,
    limit: BatchLimit | None,
) -> bool:
    """Add the moments of all batches. If a batch does not fit in memory, halve the limit and return False.

    The sums are then invalid, because some layers have added the failed batch and others have not.
    """

    def add() -> None:
        for batch in batches:
            out = labelled_tokens(model, batch)
            counts = out.counts if per == "example" else out.counts.sum()[None]
            for tap in taps:
                tap.start_batch(counts, *batch["input_ids"].shape)
            # The sum of mean-token losses: an example's loss has a gradient at its own tokens only.
            per_token = counts[out.example] if per == "example" else counts
            (-out.logp / per_token).sum().backward()
            if buffer is not None:
                buffer.end_batch()
            # Counted on the device, so that no batch waits for the one before it.
            counted.add_(torch.stack([counts.sum(), (counts > 0).sum()]))

    if limit is None:
        add()
        return True
    failure = out_of_memory(add)
    if failure is None:
        return True
    if buffer is not None:
        buffer.discard_batch()
    limit.halve(failure)
    return False


class _MomentTap(Tap):
    """Accumulate the moments of the gradient of one linear map, [out, in].

    Args:
        module: the linear map.
        shape: [out, in].
        name: the name of the parameter.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], name: str) -> None:
        super().__init__(module, name)
        self.mean = torch.zeros(shape, device=next(module.parameters()).device)
        self.second = torch.zeros_like(self.mean)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        size = max(1, BLOCK_SIZE // self.mean.numel())
        blocks = (values.split(size) for values in (counts, inputs, gradient))
        for weight, block_inputs, block_gradient in zip(*blocks, strict=True):
            # Squares of half-precision gradients would underflow, so everything is float32 from here on.
            per_example = torch.bmm(block_gradient.float().mT, block_inputs.float())  # [examples, out, in]
            add_moments(per_example.flatten(1), weight, self.mean.view(-1), self.second.view(-1))


class _CancelledTap(Tap):
    """Accumulate the moments of both factors of a layer whose adapter and offset cancel: h = W x + s·B A x − s·B A x.

    With δ the gradient of h, the gradient of z = A x is s·Bᵀδ and that of B z is s·δ. So only W has to run. Products of
    bfloat16 tensors stay bfloat16, and the moments are float32.

    Args:
        module: the layer.
        of_a: the tap of A.
        of_b: the tap of B.
    """

    def __init__(self, module: LoraLayer, of_a: _MomentTap, of_b: _MomentTap) -> None:
        super().__init__(module, of_b.name)
        self.of_a, self.of_b = of_a, of_b
        a, b = (tap.module.get_parameter("weight").detach() for tap in (of_a, of_b))
        self.scaled_a, self.scaled_b = a * module.scaling[UNLEARN], b * module.scaling[UNLEARN]
        self.size = a.numel() + b.numel()

    def use_buffer(self, buffer: GradientBuffer, place: int) -> None:
        """Replace the moments of both factors by views of a buffer that is shared with other layers."""
        self.buffer, self.place = buffer, place
        split = self.of_a.mean.numel()
        mean, second = buffer.moments(place)
        self.of_a.mean, self.of_b.mean = mean[:split].view_as(self.of_a.mean), mean[split:].view_as(self.of_b.mean)
        self.of_a.second, self.of_b.second = (
            second[:split].view_as(self.of_a.mean),
            second[split:].view_as(self.of_b.mean),
        )

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        # Gradients in float16 would underflow.
        dtype = torch.bfloat16 if inputs.dtype == gradient.dtype == torch.bfloat16 else torch.float32
        inputs, gradient = inputs.to(dtype), gradient.to(dtype)
        self.scaled_a, self.scaled_b = self.scaled_a.to(dtype), self.scaled_b.to(dtype)
        of_hidden = (gradient.flatten(0, 1) @ self.scaled_b).unflatten(0, gradient.shape[:2])
        hidden = (inputs.flatten(0, 1) @ self.scaled_a.T).unflatten(0, inputs.shape[:2])
        if len(counts) * self.size > BLOCK_SIZE:
            self.of_a.add(counts, inputs, of_hidden)
            self.of_b.add(counts, hidden, gradient)
            return

        def fill(slot: Tensor) -> None:
            of_a, of_b = slot.split([self.of_a.mean.numel(), self.of_b.mean.numel()], 1)
            torch.bmm(of_hidden.mT, inputs, out=of_a.unflatten(1, self.of_a.mean.shape))
            torch.bmm(gradient.mT, hidden, out=of_b.unflatten(1, self.of_b.mean.shape))

        self.buffer.add(self.place, counts, dtype, fill)


def _factor_taps(model: nn.Module) -> dict[str, _MomentTap]:
    """Return {parameter name: tap} for each trainable lora_A and lora_B weight."""
    modules = dict(model.named_modules())
    return {
        name: _MomentTap(modules[name.removesuffix(".weight")], tuple(parameter.shape), name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (".lora_A." in name or ".lora_B." in name)
    }


def _weight_taps(model: nn.Module, modules: Sequence[str]) -> dict[str, _MomentTap]:
    """Return {weight name: tap} for each of the linear modules."""
    linear = base_modules(model)
    return {f"{name}.weight": _MomentTap(linear[name], linear_shape(linear[name]), name) for name in modules}


@contextmanager
def _without_cancelled_adapters(
    model: nn.Module, taps: Mapping[str, _MomentTap]
) -> Iterator[tuple[list[Tap], GradientBuffer | None]]:
    """Deactivate adapter and offset within the context in all layers where they cancel exactly.

    The gradients of their factors follow from the layer's own input and output gradient. Yields the taps that replace
    the given ones, and the gradient buffer of these layers, if there are any.
    """
    of_factor = {tap.module: tap for tap in taps.values()}
    cancelled: list[_CancelledTap] = []
    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and cancels(layer):
                factors = layer.lora_A[UNLEARN], layer.lora_B[UNLEARN]
                if all(factor in of_factor for factor in factors):
                    cancelled.append(_CancelledTap(layer, *(of_factor.pop(factor) for factor in factors)))
                    stack.enter_context(without_request(layer))
        buffer = GradientBuffer([tap.size for tap in cancelled], cancelled[0].scaled_a.device) if cancelled else None
        for place, tap in enumerate(cancelled):
            assert buffer is not None
            tap.use_buffer(buffer, place)
        yield [*of_factor.values(), *cancelled], buffer
