"""Taps: receive the inputs and output gradients of linear maps in a backward pass without storing them."""

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
    """Receive the inputs and output gradients of one linear map h = M x, with M [out, in], once per backward pass.

    Args:
        module: the linear map.
        name: the name of its parameter, for error messages.
    """

    argument = "target_modules"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.counts: Tensor | None = None
        self.shape = (0, 0)

    def start_batch(self, counts: Tensor, examples: int, length: int) -> None:
        """Prepare for the next backward pass.

        Args:
            counts: [examples] labelled tokens of each example, or [1] if the whole batch counts as one example.
            examples: the number of examples in the batch.
            length: the length of the batch.
        """
        self.counts, self.shape = counts, (examples, length)

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook that inserts the tap after the map."""
        # 8-bit layers return a view, which `mark_dirty` does not accept.
        return _TapGradient.apply(args[0], output.clone() if output._is_view() else output, self)

    def see(self, inputs: Tensor, gradient: Tensor) -> None:
        """Receive the inputs and output gradients of a batch, [examples, length, features] or the same flattened."""
        counts, self.counts = self.counts, None
        if counts is None:  # two gradients would have to be added up before they are squared
            raise self._refused("it ran more than once per batch, as shared layers do")
        if len(counts) == 1:  # a single example, to which all tokens belong
            inputs, gradient = (values.flatten(0, -2)[None] for values in (inputs, gradient))
        elif inputs.shape[:-1].numel() == self.shape[0] * self.shape[1]:
            inputs, gradient = (values.view(*self.shape, values.shape[-1]) for values in (inputs, gradient))
        else:
            raise self._refused(
                "it received only some of the tokens, as routed layers do, so their examples are unknown"
            )
        self.add(counts, inputs, gradient)

    def _refused(self, reason: str) -> InputError:
        return InputError(Problem(self.argument, self.name, reason, f"leave this module out of {self.argument}"))

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Add a batch to the result of this kind of tap.

        Args:
            counts: as in `start_batch`.
            inputs: [examples, length, in]; with counts [1], all tokens as one example, [1, tokens, in].
            gradient: [examples, length, out], likewise.
        """
        raise NotImplementedError


class _TapGradient(torch.autograd.Function):
    """Pass the output of a map through unchanged, and its input and output gradient to the tap.

    The input is stored with `save_for_backward`, so that gradient checkpointing frees and recomputes it like any other
    activation. A tensor that a hook stored itself would stay in memory.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, output: Tensor, tap: Tap) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.tap = tap
        ctx.mark_dirty(output)  # returns it without a copy or view, because some models modify it in place afterwards
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        ctx.tap.see(*ctx.saved_tensors, gradients[0])
        return None, gradients[0], None


@contextmanager
def tapped(model: nn.Module, taps: Iterable[Tap]) -> Iterator[None]:
    """Install the taps and freeze all parameters within the context. Gradients flow back to the embeddings' output."""
    with ExitStack() as stack:
        stack.enter_context(_without_dropout(model))
        stack.enter_context(_frozen(model))
        embeddings = causal_lm(model).get_input_embeddings()
        # Without trainable parameters, the graph has to begin at a tensor: the output of the embeddings.
        hooks = [embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())]
        hooks += [tap.module.register_forward_hook(tap.hook) for tap in taps]
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters within the context, so that autograd computes no gradients for the weights."""
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
    """Set the model to evaluation mode within the context, but keep gradient checkpointing active."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    with ExitStack() as contexts:
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # transformers checkpoints a layer only in training mode
                if isinstance(module, GradientCheckpointingLayer):
                    contexts.enter_context(_evaluated_in_checkpoints(module))
        try:
            yield
        finally:
            model.eval()
            for module in was_training:
                module.training = True


@contextmanager
def _evaluated_in_checkpoints(layer: GradientCheckpointingLayer) -> Iterator[None]:
    """Run the part of a layer that is checkpointed in evaluation mode, so that the layer itself applies no dropout.

    The layer must be in training mode when it decides whether to checkpoint this part.
    """
    checkpoint = layer._gradient_checkpointing_func

    def evaluated(forward: Callable[..., Any], *inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            layer.training = False
            try:
                return forward(*args)
            finally:
                layer.training = True

        return checkpoint(run, *inputs)

    layer._gradient_checkpointing_func = evaluated
    try:
        yield
    finally:
        layer._gradient_checkpointing_func = checkpoint
