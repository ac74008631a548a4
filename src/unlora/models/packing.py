"""Rows one behind the other instead of one below the other: no padding, where the model's attention keeps them apart.

Every layer but attention treats tokens one by one. So the real tokens of a batch are run as one long row, with
positions that begin anew in each example, and only attention sees them one below the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "unlora_packed"
# Kinds of layers in which nothing but attention mixes the tokens of a row.
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Rows:
    """Where the tokens of packed rows would stand, one row below the other.

    Args:
        count: of the rows.
        longest: tokens of the longest.
        slots: [tokens] row · longest + place in the row.
    """

    count: int
    longest: int
    slots: Tensor

    def apart(self, states: Tensor) -> Tensor:
        """[1, heads, tokens, size] as [rows, heads, longest, size], with zeros where a row has ended."""
        _, heads, _, size = states.shape
        places = states.new_zeros(self.count * self.longest, heads, size)
        places = places.index_copy(0, self.slots.to(states.device), states[0].transpose(0, 1))
        return places.view(self.count, self.longest, heads, size).transpose(1, 2)

    def together(self, states: Tensor) -> Tensor:
        """[rows, longest, heads, size] as [1, tokens, heads, size]."""
        return states.flatten(0, 1).index_select(0, self.slots.to(states.device))[None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot product attention [1, heads, tokens, size] within each of the `rows`.

    They end, and do not begin, with what is no token: looking back only keeps it out, and no mask is needed. Without
    `rows` (a batch that is not packed, or a model that does not hand them on), and where a layer looks at fewer tokens
    than a row has, `attention_mask` does it: transformers makes one that keeps packed rows apart.
    """
    window = kwargs.get("sliding_window")
    if rows is None or kwargs.get("position_bias") is not None or (window and window < rows.longest):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = (rows.apart(states) for states in (query, key, value))
    return rows.together(sdpa_attention_forward(module, *parts, None, **kwargs)[0]), None


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
    """Within, `unlora.models.forward` packs the batches of this model, if it can be.

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


def packed_inputs(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The model's arguments on its `device`: ids and positions [1, tokens] of the batch's real tokens."""
    real = batch["attention_mask"].bool()
    places = batch["attention_mask"].cumsum(-1) - 1
    longest = int(places.max()) + 1
    first = torch.arange(len(real), device=real.device)[:, None] * longest
    return {
        "input_ids": batch["input_ids"][real][None].to(device),
        "position_ids": places[real][None].to(device),
        "rows": Rows(len(real), longest, (first + places)[real].to(device)),
        "use_cache": False,
    }
