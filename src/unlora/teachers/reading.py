"""The original model's predictions for the labels of examples, in as few batches as the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unlora.data import Batch, Example, padding_id
from unlora.models.batches import run_in_batches
from unlora.models.forward import LabelledTokens, labelled_tokens
from unlora.models.log_probabilities import upcast
from unlora.models.memory import batch_limit
from unlora.teachers.interface import Teaching

# The number of examples in a batch on a CPU.
_CPU_ROWS = 32


def predictions(examples: Sequence[Example], teaching: Teaching) -> Tensor:
    """Return the log-probabilities of all tokens at each label, [labels of all examples, vocabulary]."""
    return _read(lambda out: upcast(out.logits).log_softmax(-1), examples, teaching)


def likelihoods(examples: Sequence[Example], teaching: Teaching) -> Tensor:
    """Return the log-probability of each label, [labels of all examples]."""
    return _read(lambda out: out.logp, examples, teaching)


@torch.no_grad()
def _read(part: Callable[[LabelledTokens], Tensor], examples: Sequence[Example], teaching: Teaching) -> Tensor:
    """Run the model on all examples and return the rows that `part` takes from its output, one for each label."""
    found: list[Tensor] = []

    def read(places: range, batch: Batch) -> None:
        found.append(part(labelled_tokens(teaching.model, batch)))

    limit = batch_limit(teaching.model, None, on_cpu=_CPU_ROWS)
    run_in_batches(read, examples, limit, padding_id(teaching.text_format.tokenizer))
    return torch.cat(found)
