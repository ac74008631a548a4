"""The norm of each example's gradient, for many examples in one backward pass, without computing the gradients.

For a linear map h = W x, the gradient of an example is Σ_t δ_t x_tᵀ over its tokens t, so its squared norm is
Σ_ts (x_t · x_s)(δ_t · δ_s): the elementwise product of two matrices of shape [tokens, tokens], summed (Li et al. 2022,
https://arxiv.org/abs/2110.05679).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlora.adapter.targets import base_modules, target_shapes
from unlora.common.distributed import together
from unlora.data.encoding import Example, TextFormat
from unlora.evals.progress import Progress
from unlora.evals.scoring import check_examples, length_sorted_batches, of_all
from unlora.importance.taps import Tap, tapped
from unlora.models.forward import labelled_tokens


def gradient_norms(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int,
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
        batch_size: examples in a forward and backward pass.
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
    with together(), tapped(model, taps):
        for places, batch in length_sorted_batches(examples, batch_size, text_format, progress=progress):
            out = labelled_tokens(model, batch)
            for tap in taps.values():
                tap.start_batch(out.counts, *batch["input_ids"].shape)
            (-out.logp / out.counts[out.example]).sum().backward()
            squares = sum(tap.squares.cpu().double() for tap in taps.values())
            norms |= dict(zip(places, torch.as_tensor(squares).sqrt().tolist(), strict=True))
    return np.array(of_all(norms))


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
