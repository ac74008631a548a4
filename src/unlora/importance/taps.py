"""Taps: see the inputs and output gradients of linear maps as they pass by in a backward pass, and keep neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer

from unlora.common.errors import InputError, Problem
from unlora.models.forward import causal_lm


class Tap:
    """Sees the inputs and output gradients of one linear map h = M x, with M [out, in], once in a backward pass.

    Args:
        module: the linear map.
        name: the name of its parameter, for errors.
    """

    argument = "target_modules"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.counts: Tensor | None = None

    def start_batch(self, counts: Tensor) -> None:
        """Announce the labelled tokens of each example of the next backward pass: [examples], or [1] per batch."""
        self.counts = counts

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Put the tap between the map and what follows it. This is a forward hook."""
        return _TapGradient.apply(args[0], output, self)

    def see(self, inputs: Tensor, gradient: Tensor) -> None:
        """Receive the inputs [examples, length, in] and output gradients [examples, length, out] of a batch."""
        counts, self.counts = self.counts, None
        # Both cases would mix up examples: flattened rows cannot be told apart, and a map that runs twice has two
        # gradients to add up before they are squared.
        if inputs.dim() != 3 or counts is None:
            reason = (
                "it saw no [examples, tokens, features] input, or ran more than once a batch (a shared or routed layer)"
            )
            raise InputError(Problem(self.argument, self.name, reason, f"leave this module out of {self.argument}"))
        self.add(counts, inputs, gradient)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Add a batch, arguments as in `start_batch` and `see`, to what this kind of tap computes."""
        raise NotImplementedError


class _TapGradient(torch.autograd.Function):
    """Passes a map's output through unchanged, and shows its input and output gradient to the tap.

    Autograd keeps the input (`save_for_backward`), so that gradient checkpointing frees and recomputes it like any
    other activation. A tensor that a hook stored by itself would stay in memory.
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
    """Within, the taps are in place, every parameter is frozen, and gradients flow from the embeddings on."""
    with ExitStack() as stack:
        stack.enter_context(_without_dropout(model))
        stack.enter_context(_frozen(model))
        embeddings = causal_lm(model).get_input_embeddings()
        # No parameter requires a gradient any more, so the graph has to begin somewhere: at the embeddings' output.
        hooks = [embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())]
        hooks += [tap.module.register_forward_hook(tap.hook) for tap in taps.values()]
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter requires a gradient, so that autograd computes none for the weights."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode, but layers that checkpoint their activations go on doing so."""

    def training(value: bool) -> Callable[..., None]:
        return lambda module, *args: setattr(module, "training", value)

    was_training = [module for module in model.modules() if module.training]
    model.eval()
    with ExitStack() as hooks:
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # transformers checkpoints a layer only while its own flag says training
                # Such a layer reads the flag before it calls its own forward pass. The hooks run inside that call, and
                # switch off the dropout that the layer itself would apply.
                if isinstance(module, GradientCheckpointingLayer):
                    hooks.callback(module.register_forward_pre_hook(training(False)).remove)
                    hooks.callback(module.register_forward_hook(training(True), always_call=True).remove)
        try:
            yield
        finally:
            model.eval()
            for module in was_training:
                module.training = True
