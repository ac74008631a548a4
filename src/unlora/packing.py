"""Rows one behind the other instead of one below the other: no padding, where the model's attention keeps them apart.

Every layer but attention treats tokens one by one. So the real tokens of a batch are run as one long row, with
positions that begin anew in each example, and attention is made example by example.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "unlora_packed"
# Kinds of layers in which nothing but attention mixes the tokens of a row.
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot product attention [1, heads, tokens, size] within rows of `row_lengths` tokens each.

    Without `row_lengths` (a batch that is not packed, or a model that does not hand them on), and where a layer looks
    at fewer tokens than a row has, `attention_mask` does it: transformers makes one that keeps packed rows apart.
    """
    window = kwargs.get("sliding_window")
    if row_lengths is None or kwargs.get("position_bias") is not None or (window and window < max(row_lengths)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = zip(*(states.split(list(row_lengths), dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *part, None, **kwargs)[0] for part in parts], 1), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def can_pack(core: Any) -> bool:
    """Whether the model takes positions, runs on PyTorch's attention, and mixes tokens nowhere else."""
    layers = getattr(core.config, "layer_types", None) or ATTENTION_LAYERS
    return (
        core.config._attn_implementation == "sdpa"
        and core._supports_attention_backend
        and not core._is_stateful
        and set(layers) <= ATTENTION_LAYERS
        and "position_ids" in inspect.signature(core.forward).parameters
    )


@contextmanager
def packing(core: Any) -> Iterator[None]:
    """Within, `unlora.forward` packs the batches of this model, if it can be.

    Not switched for single passes: a gradient checkpoint runs its layers again in the backward pass.
    """
    before = core.config._attn_implementation
    if can_pack(core):
        core.config._attn_implementation = PACKED
    try:
        yield
    finally:
        core.config._attn_implementation = before


def is_packing(core: Any) -> bool:
    """Whether batches of this model are packed."""
    return bool(core.config._attn_implementation == PACKED)


def packed_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The model's arguments: ids and positions [1, tokens] of the batch's real tokens."""
    real = batch["attention_mask"].bool()
    positions = batch["attention_mask"].cumsum(-1) - 1
    return {
        "input_ids": batch["input_ids"][real][None],
        "position_ids": positions[real][None],
        "row_lengths": real.sum(-1).tolist(),
        "use_cache": False,
    }
