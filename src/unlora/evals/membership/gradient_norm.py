"""The norm of each example's gradient, many examples in one backward pass, without making any gradient.

For a linear map h = W x, example i's gradient is Σ_t δ_t x_tᵀ over its tokens, so its squared norm is
Σ_ts (x_t · x_s)(δ_t · δ_s): two matrices of tokens × tokens, multiplied element by element (Li et al. 2022,
https://arxiv.org/abs/2110.05679).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlora.adapter.settings import base_modules, target_shapes
from unlora.common.distributed import together
from unlora.data.encoding import Example, TextFormat
from unlora.evals.scoring import Progress, check_examples, of_all, scoring_batches
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
    """Euclidean norm of the gradient of each example's mean-token loss, [examples].

    The gradient is that of the whole weights of linear layers, not of LoRA factors: any model has it, and an adapter
    beside the weights gives the same as one merged into them. Members of the training data have small norms, so minus
    the norm is a membership score (Wang et al. 2024, https://arxiv.org/abs/2402.17012).

    Args:
        model: a causal LM, with or without adapters; left as it was found.
        examples: tokenised.
        text_format: whose tokenizer says what fills short rows.
        batch_size: rows of a forward and backward pass.
        modules: names of the linear layers without any adapters; all but the output head if not given.
        progress: called after each batch with the number of examples done so far.

    Raises:
        InputError: as `check_examples`, or a layer whose input does not keep examples apart.
    """
    check_examples(model, examples, text_format)
    linear = base_modules(model)
    names = list(target_shapes(model, "all-linear")) if modules is None else modules
    taps = {name: NormTap(linear[name], name) for name in names}
    norms: dict[int, float] = {}
    with together(), tapped(model, taps):
        for chosen, batch in scoring_batches(model, examples, batch_size, text_format, progress=progress):
            out = labelled_tokens(model, batch)
            for tap in taps.values():
                tap.start_batch(out.counts)
            (-out.logp / out.counts[out.example]).sum().backward()
            squares = sum(tap.squares.cpu().double() for tap in taps.values())
            norms |= dict(zip(chosen, torch.as_tensor(squares).sqrt().tolist(), strict=True))
    return np.array(of_all(norms))


class NormTap(Tap):
    """Keeps the squared norm of each example's gradient of one linear map, [examples], of the last batch."""

    argument = "modules"

    def start_batch(self, counts: Tensor) -> None:
        """Forgets the batch before; a layer that the next one does not run has no gradient."""
        super().start_batch(counts)
        self.squares = torch.zeros(len(counts), device=counts.device)

    def add(self, counts: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Makes them from the products of tokens; rounding may leave a zero slightly negative."""
        inputs, gradient = inputs.float(), gradient.float()
        products = torch.bmm(inputs, inputs.mT).mul_(torch.bmm(gradient, gradient.mT))
        self.squares = products.sum((1, 2)).clamp_(min=0)
