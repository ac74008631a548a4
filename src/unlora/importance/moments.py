"""Exact first and second moments of per-example gradients of linear maps, many examples in one backward pass.

A LoRA factor, and a whole weight too, is a linear map: h = M x. For example i its gradient is Σ_t δ_t x_tᵀ over the
example's own tokens, so input x and output gradient δ of a batch hold every example's gradient, apart from each other.
A tap on the map's output multiplies them in the backward pass and adds the result to the moments; no gradient is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer

from unlora.adapter.offset import cancels, without_request
from unlora.adapter.settings import UNLEARN, base_modules, linear_shape
from unlora.common.distributed import add_up, gather, in_lockstep, together
from unlora.common.errors import InputError, Problem, unknown_name
from unlora.models.forward import causal_lm, labelled_tokens
from unlora.settings import GRANULARITIES

# Per-example gradients of a weight are made for as many examples at once as have this many numbers together (256 MiB).
BLOCK = 2**26


@dataclass
class Moments:
    """First and second moment of the gradient g_i of example i's mean-token loss, weighted by its n_i labelled tokens.

    Args:
        mean: {parameter name: Σ n_i g_i / Σ n_i}, [out, in], float32.
        second: {parameter name: Σ n_i g_i² / Σ n_i}, likewise.
        tokens: Σ n_i.
        examples: how many g_i there were.
    """

    mean: dict[str, Tensor]
    second: dict[str, Tensor]
    tokens: int
    examples: int

    def __add__(self, other: Moments) -> Moments:
        """The moments over the examples of both, of the same parameters."""
        tokens = self.tokens + other.tokens
        share = self.tokens / tokens

        def both(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: two[name].lerp(value, share) for name, value in one.items()}

        return Moments(
            both(self.mean, other.mean), both(self.second, other.second), tokens, self.examples + other.examples
        )

    def variance(self, name: str) -> Tensor:
        """max(E[g²] − E[g]², 0) of one parameter: the Fisher information as the variance of the score (VILA)."""
        return (self.second[name] - self.mean[name].square()).clamp_(min=0)

    def information(self, name: str, centred: bool) -> Tensor:
        """The variance of one parameter's gradient, or E[g²] where not `centred`; a tensor of its own."""
        return self.variance(name) if centred else self.second[name].clone()


def gradient_moments(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    per: str = "example",
    *,
    weights: Sequence[str] | None = None,
    all_processes: bool = False,
) -> Moments:
    """Moments of the gradient of each trainable LoRA factor over `batches`, at the model's present parameters.

    The model runs without dropout and is left as it was found. Layers with gradient checkpointing switched on are
    checkpointed here too. Beside the model and its activations, only the moments take memory.

    Args:
        model: a PEFT LoRA model, whose factors that require a gradient are measured; any causal LM with `weights`.
        batches: dicts of input_ids, attention_mask and labels [examples, length], padded on either side.
        per: "example" for one gradient per row; "batch" for one per batch, of the mean-token loss over all its rows (as
            VILA's and FILA's released code does).
        weights: names of linear modules whose whole weights are measured instead (FILA); two float32 copies of those
            weights are needed, so large models are measured some layers at a time.
        all_processes: in a job of several processes, each of which calls this with its own batches (possibly none), the
            moments over the batches of all.

    Returns:
        `Moments`, keyed by the factors' names in `model.named_parameters()`, or "<module>.weight" and [out, in] for
        whole weights; on the parameters' device.

    Raises:
        InputError: no factor to measure, no labelled token, or an unknown `per`.

    Source: Kim et al., COLM 2025 (arXiv 2508.21300); Cha et al., ICLR 2025 (arXiv 2408.06621) for whole weights.
    """
    if per not in GRANULARITIES:
        raise InputError(unknown_name("per", per, GRANULARITIES))
    taps = factor_taps(model) if weights is None else weight_taps(model, weights)
    if not taps:
        reason = "no LoRA factor requires a gradient"
        raise InputError(
            Problem("model", type(model).__name__, reason, "give a PEFT model with a trainable LoRA adapter")
        )
    device = next(iter(taps.values())).mean.device
    seen = torch.zeros(2, dtype=torch.long, device=device)  # read at the end: no batch waits for the one before it
    with (
        together() if all_processes else nullcontext(),
        shortened(model, taps) as listeners,
        tapped(model, listeners),
    ):
        for batch in batches:
            out = labelled_tokens(model, batch)
            counts = out.counts if per == "example" else out.counts.sum()[None]
            for tap in listeners.values():
                tap.start_batch(counts)
            per_token = counts[out.example] if per == "example" else counts
            (-out.logp / per_token).sum().backward()
            seen += torch.stack([counts.sum(), (counts > 0).sum()])
    tokens, examples = seen.tolist()
    if all_processes and not in_lockstep():
        tokens, examples = (sum(counts) for counts in zip(*gather((tokens, examples)), strict=True))
        add_up(part for tap in taps.values() for part in (tap.mean, tap.second))
    if not tokens:
        raise InputError(
            Problem("batches", "0 labelled tokens", "there is no loss to take a gradient of", "check the labels")
        )
    mean = {name: tap.mean.div_(tokens) for name, tap in taps.items()}
    return Moments(mean, {name: tap.second.div_(tokens) for name, tap in taps.items()}, tokens, examples)


class Tap:
    """Sees the inputs and output gradients of one linear map [out, in] as they pass by in a backward pass.

    Args:
        module: the linear map.
        name: of the parameter, for errors.
    """

    argument = "target_modules"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.counts: Tensor | None = None

    def start_batch(self, counts: Tensor) -> None:
        """Tells the labelled tokens of each example of the coming backward pass: [examples], or [1] per batch."""
        self.counts = counts

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook: puts the tap between the map and what follows it."""
        return _TapGradient.apply(args[0], output, self)

    def see(self, inputs: Tensor, gradient: Tensor) -> None:
        """Takes in inputs [examples, tokens, in] and output gradients [examples, tokens, out] of a batch, once."""
        counts, self.counts = self.counts, None
        if inputs.dim() != 3 or counts is None:
            reason = (
                "it saw no [examples, tokens, features] input, or ran more than once a batch (a shared or routed layer)"
            )
            raise InputError(Problem(self.argument, self.name, reason, f"leave this module out of {self.argument}"))
        self.add(counts, inputs, gradient)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """What a kind of tap makes of them."""
        raise NotImplementedError


class MomentTap(Tap):
    """Adds up the moments of one linear map's gradient, [out, in].

    Args:
        module: the linear map.
        shape: [out, in].
        name: of the parameter.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], name: str) -> None:
        super().__init__(module, name)
        self.mean = torch.zeros(shape, device=next(module.parameters()).device)
        self.second = torch.zeros_like(self.mean)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Adds the moments of a batch."""
        if len(counts) == 1:  # one example, or the whole batch as one
            inputs, gradient = inputs.flatten(0, 1)[None], gradient.flatten(0, 1)[None]
        size = max(1, BLOCK // self.mean.numel())
        blocks = (values.split(size) for values in (counts, inputs, gradient))
        for weight, block_inputs, block_gradient in zip(*blocks, strict=True):
            per_example = torch.bmm(block_gradient.float().transpose(1, 2), block_inputs.float())  # [examples, out, in]
            per_example, weight = per_example.flatten(1).T, weight.to(per_example.dtype)
            self.mean.view(-1).addmv_(per_example, weight)
            self.second.view(-1).addmv_(per_example.square_(), weight)


class CancelledTap(Tap):
    """Moments of both factors of a layer that is what it is without them: h = W x + s·B A x − s·B A x.

    With δ the gradient of h, that of A x is s·Bᵀδ, and that of B z, z = A x, is s·δ: nothing but W need be run.

    Args:
        module: the layer.
        name: of the layer, for errors.
        of_a: the tap of A.
        of_b: the tap of B.
    """

    def __init__(self, module: LoraLayer, name: str, of_a: MomentTap, of_b: MomentTap) -> None:
        super().__init__(module, name)
        self.of_a, self.of_b = of_a, of_b
        self.a = of_a.module.get_parameter("weight").detach()
        self.scaled_b = of_b.module.get_parameter("weight").detach() * module.scaling[UNLEARN]
        self.scaling = module.scaling[UNLEARN]

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Adds the moments of a batch."""
        inputs, gradient = inputs.to(self.a.dtype), gradient.to(self.a.dtype)
        self.of_a.add(counts, inputs, gradient @ self.scaled_b)
        self.of_b.add(counts, inputs @ self.a.T * self.scaling, gradient)


def factor_taps(model: nn.Module) -> dict[str, MomentTap]:
    """A tap for each trainable lora_A and lora_B weight, by its parameter's name."""
    modules = dict(model.named_modules())
    return {
        name: MomentTap(modules[name.removesuffix(".weight")], tuple(parameter.shape), name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (".lora_A." in name or ".lora_B." in name)
    }


@contextmanager
def shortened(model: nn.Module, taps: Mapping[str, MomentTap]) -> Iterator[dict[str, Tap]]:
    """Within, layers whose adapter and offset cancel exactly run neither; yields the taps that then see everything."""
    names = {tap.module: name for name, tap in taps.items()}
    listeners: dict[str, Tap] = dict(taps)
    with ExitStack() as stack:
        for layer_name, layer in model.named_modules():
            if isinstance(layer, LoraLayer) and cancels(layer):
                factors = layer.lora_A[UNLEARN], layer.lora_B[UNLEARN]
                if all(factor in names for factor in factors):
                    of_a, of_b = (taps[names[factor]] for factor in factors)
                    del listeners[names[factors[0]]], listeners[names[factors[1]]]
                    listeners[layer_name] = CancelledTap(layer, names[factors[1]], of_a, of_b)
                    stack.enter_context(without_request(layer))
        yield listeners


def weight_taps(model: nn.Module, modules: Sequence[str]) -> dict[str, MomentTap]:
    """A tap for each named linear module, by its weight's name."""
    linear = base_modules(model)
    return {f"{name}.weight": MomentTap(linear[name], linear_shape(linear[name]), name) for name in modules}


class _TapGradient(torch.autograd.Function):
    """Passes a factor's output through unchanged, and shows the tap its input and output gradient.

    The input is kept by autograd (`save_for_backward`), so gradient checkpointing frees and recomputes it as any other
    activation.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, output: Tensor, tap: Tap) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.tap = tap
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        ctx.tap.see(*ctx.saved_tensors, gradients[0])
        return None, gradients[0], None


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Within, every parameter is frozen, gradients flow from the embeddings on, and the taps are in place."""
    with ExitStack() as stack:
        stack.enter_context(without_dropout(model))
        stack.enter_context(frozen(model))
        embeddings = causal_lm(model).get_input_embeddings()
        # Nothing requires a gradient any more, so the graph has to begin somewhere: at the embeddings' output.
        hooks = [embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())]
        hooks += [tap.module.register_forward_hook(tap.hook) for tap in taps.values()]
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter requires a gradient: autograd computes none for the weights."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _set_training(module: nn.Module, value: bool) -> None:
    module.training = value


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode, but layers that checkpoint their activations go on doing so."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    hooks = []
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # transformers checkpoints a layer only while its own flag says training
            if isinstance(module, GradientCheckpointingLayer):  # which it asks before the layer itself runs
                hooks.append(module.register_forward_pre_hook(lambda module, args: _set_training(module, False)))
                hooks.append(
                    module.register_forward_hook(
                        lambda module, args, output: _set_training(module, True), always_call=True
                    )
                )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.eval()
        for module in was_training:
            module.training = True
