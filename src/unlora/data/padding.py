"""Examples to rectangular batches.

The mask comes from lengths, never from ids: where pad equals eos, real end tokens stay visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlora.common.errors import InputError, Problem
from unlora.data.encoding import IGNORE_INDEX, Example, count_labels

Batch = dict[str, Tensor]


def padding_id(tokenizer: Any) -> int:
    """The id that fills short rows: the pad token, or the eos token where there is none.

    Raises:
        InputError: the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    fix = "set tokenizer.pad_token or tokenizer.eos_token"
    raise InputError(Problem("tokenizer", type(tokenizer).__name__, "it has neither a pad nor an eos token", fix))


def pad_batch(examples: Sequence[Example], pad_id: int, side: str = "right") -> Batch:
    """Pads to the longest row.

    Returns:
        input_ids, attention_mask and labels, each [examples, longest]; padding has mask 0 and label -100.
    """
    longest = max(len(example["input_ids"]) for example in examples)

    def rows(values: Sequence[list[int]], fill: int) -> Tensor:
        gaps = [[fill] * (longest - len(value)) for value in values]
        pairs = zip(values, gaps, strict=True)
        return torch.tensor([gap + value if side == "left" else value + gap for value, gap in pairs])

    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": rows(ids, pad_id),
        "attention_mask": rows([[1] * len(row) for row in ids], 0),
        "labels": rows([example["labels"] for example in examples], IGNORE_INDEX),
    }


def iter_batches(examples: Sequence[Example], batch_size: int, pad_id: int, *, sort: bool = True) -> Iterator[Batch]:
    """All examples once, in batches of similar length (the longest first, so that too large a batch fails at once).

    Without `sort` the batches keep the given order.
    """
    order = list(range(len(examples)))
    if sort:
        order.sort(key=lambda i: -len(examples[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        yield pad_batch([examples[i] for i in order[start : start + batch_size]], pad_id)


@dataclass(frozen=True)
class UnlearnCollator:
    """Collates pairs of a forget and a retain example into one batch: the forget rows first, then the retain rows.

    One batch means one forward pass for both losses. `forget_examples` says where the retain rows begin; `ref_logp`
    (the reference model's log-probability of each row before that) is passed on where the dataset has it. `pairs`,
    `forget_tokens` and `retain_tokens` say how many pairs and labelled tokens count. Fillers are left out; in a batch
    of nothing else one stays, and all three are 0.

    Args:
        pad_id: fills short rows.
        reads: the columns that the forget rows are taken from, one after the other: "forget", "alternate" or both.
    """

    pad_id: int
    reads: tuple[str, ...] = ("forget",)

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pads the pairs of one step: tensors as in `pad_batch`, of [2 × pairs, longest] if one column is read."""
        real = [pair for pair in pairs if not pair.get("filler")]
        pairs = real or pairs[:1]
        forget = [pair[column] for column in self.reads for pair in pairs]
        retain = [pair["retain"] for pair in pairs if pair["retain"] is not None]
        tokens = {"forget_tokens": forget, "retain_tokens": retain}
        counts = {name: count_labels(rows) if real else 0 for name, rows in tokens.items()}
        numbers = {"forget_examples": len(forget), "pairs": len(real), **counts}
        batch: dict[str, Any] = {**pad_batch(forget + retain, self.pad_id), **numbers}
        if pairs[0]["ref_logp"]:
            batch["ref_logp"] = torch.tensor([pair["ref_logp"][column] for column in self.reads for pair in pairs])
        return batch
