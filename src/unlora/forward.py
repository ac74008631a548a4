"""The model's predictions at labelled positions, and nothing else: the head never sees a prompt or a pad."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlora.data.encoding import IGNORE_INDEX


@dataclass(frozen=True)
class LabelledTokens:
    """What a model says of the labelled tokens of a batch. Tokens stand in the order of their examples.

    Args:
        logits: [tokens, vocabulary], of the position before each labelled token.
        targets: [tokens], the labelled tokens.
        example: [tokens], the row of the batch that each belongs to.
        examples: how many rows the batch has.
        ref_logp: [examples], the reference model's summed log-probability of each row's labels, for losses that ask.
        ref_logits: [tokens, vocabulary] of the reference model, for losses that ask.
    """

    logits: Tensor
    targets: Tensor
    example: Tensor
    examples: int
    ref_logp: Tensor | None = None
    ref_logits: Tensor | None = None

    @cached_property
    def logp(self) -> Tensor:
        """[tokens] log-probability of each labelled token, in nats, at least float32."""
        return -F.cross_entropy(upcast(self.logits), self.targets, reduction="none")

    @cached_property
    def counts(self) -> Tensor:
        """[examples] number of labelled tokens."""
        return torch.bincount(self.example, minlength=self.examples)

    @cached_property
    def example_logp(self) -> Tensor:
        """[examples] log-probability of each row's labels, summed over its tokens."""
        return self.logp.new_zeros(self.examples).index_add(0, self.example, self.logp)

    def rows(self, start: int, stop: int) -> LabelledTokens:
        """The part that belongs to rows start..stop-1 of the batch."""
        first, last = torch.searchsorted(self.example, self.example.new_tensor([start, stop])).tolist()
        cut = slice(first, last)
        return LabelledTokens(self.logits[cut], self.targets[cut], self.example[cut] - start, stop - start)


def labelled_tokens(model: nn.Module, batch: Mapping[str, Any]) -> LabelledTokens:
    """Runs the model on `input_ids` and `attention_mask` and returns its predictions of `labels`.

    Labels are shifted here: the label at position t is predicted from position t - 1. Positions count from each row's
    first real token, so left and right padding give the same numbers.
    """
    labels = batch["labels"][:, 1:]
    # A row's first real token is predicted from nothing, also where padding on the left stands before it.
    chosen = (labels != IGNORE_INDEX) & batch["attention_mask"][:, :-1].bool()
    # A trailing column stands for the last position, which predicts nothing.
    positions = F.pad(chosen, (0, 1))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    core = causal_lm(model)
    if "position_ids" in inspect.signature(core.forward).parameters:
        inputs["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with head_sees_only(core, positions):
        logits = model(**inputs, use_cache=False).logits[0]
    return LabelledTokens(logits, labels[chosen], chosen.nonzero()[:, 0], len(labels))


def upcast(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside wrappers such as DistributedDataParallel and PeftModel."""
    from accelerate.utils import extract_model_from_parallel
    from peft import PeftModel

    model = extract_model_from_parallel(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def head_sees_only(core: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within, the output embedding gets the hidden states at `positions` (bool [rows, length]) as one row.

    A hook, not a head of our own, so that whatever a model does to its logits afterwards (scaling, soft-capping)
    is still done.
    """
    head = core.get_output_embeddings()  # type: ignore[operator]

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][positions.to(args[0].device)].unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()
