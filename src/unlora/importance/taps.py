"""Taps: see the inputs and output gradients of linear maps as they pass by in a backward pass, and keep neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
        self.shape = (0, 0)

    def start_batch(self, counts: Tensor, examples: int, length: int) -> None:
        """Announce the next backward pass.

        Args:
            counts: the labelled tokens of each example, [examples], or [1] of the whole batch as one example.
            examples, length: the shape of the batch.
        """
        self.counts, self.shape = counts, (examples, length)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Put the tap between the map and what follows it. This is a forward hook."""
        # A view, which 8-bit layers return, may not be passed on as changed in place.
        return _TapGradient.apply(args[0], output.clone() if output._is_view() else output, self)

    def see(self, inputs: Tensor, gradient: Tensor) -> None:
        """Receive the inputs and output gradients of a batch, [examples, length, features] or the same flattened."""
        counts, self.counts = self.counts, None
        if counts is None:  # two gradients would have to be added up before they are squared
            raise self._refused("it ran more than once a batch, as shared layers do")
        if len(counts) == 1:  # one example, or the whole batch as one: whatever tokens came here belong to it
            inputs, gradient = (values.flatten(0, -2)[None] for values in (inputs, gradient))
        elif inputs.shape[:-1].numel() == self.shape[0] * self.shape[1]:
            inputs, gradient = (values.view(*self.shape, values.shape[-1]) for values in (inputs, gradient))
        else:
            raise self._refused("it saw only some of the tokens, as routed layers do, and cannot tell whose they are")
        self.add(counts, inputs, gradient)

    def _refused(self, reason: str) -> InputError:
        return InputError(Problem(self.argument, self.name, reason, f"leave this module out of {self.argument}"))

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Add a batch to what this kind of tap computes.

        Args:
            counts: as in `start_batch`.
            inputs: [examples, length, in]; with counts [1], all tokens as one example, [1, tokens, in].
            gradient: [examples, length, out], likewise.
        """
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
        ctx.mark_dirty(output)  # so that it may be returned as it is: some models go on to change it in place
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        ctx.tap.see(*ctx.saved_tensors, gradients[0])
        return None, gradients[0], None


@contextmanager
def tapped(model: nn.Module, taps: Iterable[Tap]) -> Iterator[None]:
    """Within, the taps are in place, every parameter is frozen, and gradients flow from the embeddings on."""
    with ExitStack() as stack:
        stack.enter_context(_without_dropout(model))
        stack.enter_context(_frozen(model))
        embeddings = causal_lm(model).get_input_embeddings()
        # No parameter requires a gradient any more, so the graph has to begin somewhere: at the embeddings' output.
        hooks = [embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())]
        hooks += [tap.module.register_forward_hook(tap.hook) for tap in taps]
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
