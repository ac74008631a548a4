"""Pad examples to rectangular batches.

The attention mask is computed from the lengths of the examples and never from their ids. Many tokenizers pad with EOS,
so a mask from ids would also hide the real EOS of each answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unlora.common.errors import InputError, Problem
from unlora.data.batching import BatchLimit
from unlora.data.encoding import IGNORE_INDEX, Example, count_labels
from unlora.data.lessons import join_lessons

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the pad token, or of the EOS token if there is no pad token.

    Raises:
        InputError: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    fix = "set tokenizer.pad_token or tokenizer.eos_token"
    raise InputError(Problem("tokenizer", type(tokenizer).__name__, "it has neither a pad nor an eos token", fix))


def pad_batch(examples: Sequence[Example], pad_id: int, side: str = "right") -> Batch:
    """Pad examples to the length of the longest.

    Returns:
        input_ids, attention_mask and labels, each [examples, longest]. Padding has mask 0 and label -100.
    """

    def padded(rows: Sequence[list[int]], value: int) -> Tensor:
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": padded(ids, pad_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([example["labels"] for example in examples], IGNORE_INDEX),
    }


def iter_batches(
    examples: Sequence[Example], batch_size: int | BatchLimit, pad_id: int, *, sort: bool = True
) -> Iterator[Batch]:
    """Yield all examples once, in padded batches of similar length.

    The longest examples come first, so that a batch size that needs too much memory fails early. Without `sort`, the
    examples keep their order.
    """
    ordered = sorted(examples, key=lambda example: -len(example["input_ids"])) if sort else examples
    limit = batch_size if isinstance(batch_size, BatchLimit) else BatchLimit(batch_size)
    lengths, start = [len(example["input_ids"]) for example in ordered], 0
    while start < len(ordered):
        count = limit.count(lengths, start)
        yield pad_batch(ordered[start : start + count], pad_id)
        start += count


@dataclass(frozen=True)
class Batches:
    """The batches of `iter_batches`, formed again in each iteration, because the limit may have changed."""

    examples: Sequence[Example]
    limit: BatchLimit
    pad_id: int

    def __iter__(self) -> Iterator[Batch]:
        return iter_batches(self.examples, self.limit, self.pad_id)


@dataclass(frozen=True)
class UnlearnCollator:
    """Collate pairs of a forget and a retain example into one batch: all forget rows, then all retain rows.

    Both losses are thus computed from one forward pass. Besides the tensors of `pad_batch`, a batch has

    - `forget_examples`: the number of forget rows, which is also the index of the first retain row;
    - `pairs`, `forget_tokens` and `retain_tokens`: the number of pairs and of labelled tokens. Fillers are removed and
      not counted. A batch of fillers only keeps one of them, because a batch needs a row, and all three are 0;
    - `ref_logp`: [forget rows], the reference model's log-probability of each, if the dataset has it;
    - `lesson`: the tensors of the teacher's `Lesson` for the forget rows, if the dataset has it.

    Args:
        pad_id: the id to pad with.
        reads: the columns of the forget rows: "forget", "alternate" or both, one after the other.
    """

    pad_id: int
    reads: tuple[str, ...] = ("forget",)

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate the pairs of one step. The tensors are [2 × pairs, longest] if one column is read."""
        real = [pair for pair in pairs if not pair.get("filler")]
        pairs = real or pairs[:1]
        forget = [pair[column] for column in self.reads for pair in pairs]
        retain = [pair["retain"] for pair in pairs if pair["retain"] is not None]
        batch: dict[str, Any] = {
            **pad_batch(forget + retain, self.pad_id),
            "forget_examples": len(forget),
            "pairs": len(real),
            "forget_tokens": count_labels(forget) if real else 0,
            "retain_tokens": count_labels(retain) if real else 0,
        }
        if pairs[0]["ref_logp"]:
            batch["ref_logp"] = torch.tensor([pair["ref_logp"][column] for column in self.reads for pair in pairs])
        if pairs[0].get("lesson") is not None:
            lessons = [pair["lesson"] for pair in pairs]
            batch["lesson"] = join_lessons(lessons, [count_labels([example]) for example in forget]).tensors()
        return batch
