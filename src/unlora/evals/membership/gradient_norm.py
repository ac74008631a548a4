"""The norm of each example's gradient, for many examples in one backward pass, without computing the gradients.

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

    It is the gradient with respect to the weights of linear layers, not to LoRA factors: any model has it, and it is
    the same for a separate adapter as for a merged one. Members of the training data have small norms, so minus the
    norm is a membership score (Wang et al. 2024, https://arxiv.org/abs/2402.17012).

    Args:
        model: a causal LM, with or without adapters. It is left as it was found.
        examples: tokenised.
        text_format: its tokenizer defines the padding.
        batch_size: maximum number of examples in a forward and backward pass. None fills the memory of a GPU.
        modules: names of the linear layers, as they are without adapters. By default all but the output head.
        progress: called after each batch with the number of examples done so far.

    Raises:
        InputError: as `check_examples`, or a layer whose input does not keep the examples of a batch apart.
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

    It is the mean of the Euclidean norms that the gradient has for each parameter of the model. The loss is the mean
    over all labels but the last one; an example of a single label has norm 0. Adapters are no parameters: the gradient
    for a weight under an adapter is that for the merged weight.

    Args:
        model: a causal LM in a floating-point format, with or without adapters. It is left as it was found.
        examples: tokenised.
        text_format: its tokenizer defines the padding.
        progress: called after each example with the number of examples done so far.

    Raises:
        InputError: as `check_examples`, or a quantised model.
    """
    check_examples(model, examples, text_format)
    parameters = [part for name, part in causal_lm(model).named_parameters() if ".lora_" not in name]
    if not all(part.is_floating_point() for part in parameters):
        reason, fix = "a quantised weight has no gradient", "remove parameter_gradnorm, or load the model without"
        raise InputError(Problem("parameter_gradnorm", True, reason, fix))
    norms: dict[int, float] = {}
    with together(), without_dropout(model), _trained(parameters):

        def add(places: list[int], batch: Batch) -> None:
            norms[places[0]] = _mean_norm(labelled_tokens(model, batch).logp[:-1], parameters)

        run_batches(add, examples, BatchLimit(rows=1), text_format, progress=progress)
    return np.array(of_all(norms))


@contextmanager
def _trained(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within, all of these parameters require gradients."""
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
        """Reset the squares: a layer that the next batch does not run has no gradient."""
        super().start_batch(counts, examples, length)
        self.squares = torch.zeros(len(counts), device=counts.device)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Compute the squares from products of tokens. Rounding may leave a zero slightly negative."""
        inputs, gradient = inputs.float(), gradient.float()
        products = torch.bmm(inputs, inputs.mT).mul_(torch.bmm(gradient, gradient.mT))
        self.squares = products.sum((1, 2)).clamp_(min=0)
