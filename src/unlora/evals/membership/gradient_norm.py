"""Compute the norm of each example's gradient for many examples in one backward pass, without forming the gradients.

For a linear map h = W x, the gradient of an example is Σ_t δ_t x_tᵀ over its tokens t, so its squared norm is
Σ_ts (x_t · x_s)(δ_t · δ_s): the elementwise product of two matrices of shape [tokens, tokens], summed (Li et al. 2022,
https://arxiv.org/abs/2110.05679).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlora.adapter.targets import base_modules, target_shapes
from unlora.common.distributed import together
from unlora.common.errors import InputError, Problem
from unlora.data.batching import BatchLimit
from unlora.data.encoding import Example, TextFormat
from unlora.data.padding import Batch
from unlora.evals.progress import Progress
from unlora.evals.scoring import CPU_ROWS, check_examples, of_all, run_batches, without_dropout
from unlora.importance.taps import Tap, tapped
from unlora.models.forward import causal_lm, labelled_tokens
from unlora.models.memory import batch_limit


def gradient_norms(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int | None,
    modules: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Return the Euclidean norm of the gradient of each example's mean-token loss, [examples].

    The gradient is taken with respect to the weights of linear layers, not to LoRA factors: any model has these
    weights, and the norm is the same for a separate and a merged adapter. Members of the training data have small
    norms, so minus the norm is a membership score (Wang et al. 2024, https://arxiv.org/abs/2402.17012).

    Args:
        model: a causal LM, with or without adapters. It is left as it was found.
        examples: tokenised examples.
        text_format: its tokenizer defines the padding.
        batch_size: maximum number of examples in a forward and backward pass. None fills the memory of a GPU.
        modules: names of the linear layers in the model without adapters. By default, all except the output head.
        progress: called after each batch with the number of examples done so far.

    Raises:
        InputError: as `check_examples`, or a layer runs more than once a batch or sees only some of the tokens.
    """
    check_examples(model, examples, text_format)
    linear = base_modules(model)
    names = list(target_shapes(model, "all-linear")) if modules is None else modules
    taps = {name: NormTap(linear[name], name) for name in names}
    norms: dict[int, float] = {}
    limit = batch_limit(model, batch_size, on_cpu=CPU_ROWS, backward=True)
    with together(), tapped(model, taps.values()):

        def add(places: list[int], batch: Batch) -> None:
            out = labelled_tokens(model, batch)
            for tap in taps.values():
                tap.start_batch(out.counts, *batch["input_ids"].shape)
            (-out.logp / out.counts[out.example]).sum().backward()
            squares = torch.stack([tap.squares for tap in taps.values()]).double().sum(0)
            norms.update(zip(places, squares.sqrt().tolist(), strict=True))

        run_batches(add, examples, limit, text_format, progress=progress)
    return np.array(of_all(norms))


def parameter_gradient_norms(
    model: nn.Module, examples: Sequence[Example], text_format: TextFormat, progress: Progress | None = None
) -> NDArray[np.float64]:
    """Return open-unlearning's gradient norm of each example, [examples].

    It is the mean over the model's parameters of the Euclidean norm of the gradient. The loss is the mean over all
    labels except the last one; an example with a single label has norm 0. Adapter weights do not count as parameters:
    the gradient of a weight under an adapter is that of the merged weight.

    Args:
        model: a causal LM in a floating-point format, with or without adapters. It is left as it was found.
        examples: tokenised examples.
        text_format: its tokenizer defines the padding.
        progress: called after each example with the number of examples done so far.

    Raises:
        InputError: as `check_examples`, or a quantised model.
    """
    check_examples(model, examples, text_format)
    parameters = [part for name, part in causal_lm(model).named_parameters() if ".lora_" not in name]
    if not all(part.is_floating_point() for part in parameters):
        fix = "remove parameter_gradnorm, or load the model without quantisation"
        reason = "a quantised weight has no gradient"
        raise InputError(Problem("parameter_gradnorm", True, reason, fix))
    norms: dict[int, float] = {}
    with together(), without_dropout(model), _requiring_gradients(parameters):

        def add(places: list[int], batch: Batch) -> None:
            norms[places[0]] = _mean_norm(labelled_tokens(model, batch).logp[:-1], parameters)

        run_batches(add, examples, BatchLimit(rows=1), text_format, progress=progress)
    return np.array(of_all(norms))


@contextmanager
def _requiring_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let all of these parameters require gradients. At the end, restore which ones do."""
    before = [part.requires_grad for part in parameters]
    try:
        for part in parameters:
            part.requires_grad_(True)
        yield
    finally:
        for part, was in zip(parameters, before, strict=True):
            part.requires_grad_(was)


def _mean_norm(logp: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    if not len(logp):
        return 0.0
    found = torch.autograd.grad(-logp.mean(), parameters, allow_unused=True)
    return float(np.mean([gradient.norm().item() for gradient in found if gradient is not None]))


class NormTap(Tap):
    """Record the squared norm of each example's gradient of one linear map, [examples], for the last batch."""

    argument = "modules"

    def start_batch(self, counts: Tensor, examples: int, length: int) -> None:
        """Reset the squares to 0, which stays the result if the layer does not run for the batch."""
        super().start_batch(counts, examples, length)
        self.squares = torch.zeros(len(counts), device=counts.device)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Compute the squares from products of tokens. They are clamped, because rounding may make them negative."""
        inputs, gradient = inputs.float(), gradient.float()
        products = torch.bmm(inputs, inputs.mT).mul_(torch.bmm(gradient, gradient.mT))
        self.squares = products.sum((1, 2)).clamp_(min=0)
