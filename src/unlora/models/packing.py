"""Run a batch without padding: all rows packed into one long row.

Packed rows give the same results as padded ones. In a transformer, only attention mixes tokens. All other layers
(embeddings, norms, feed-forward layers, LoRA) treat every token independently, so they can run on one long row of all
real tokens, which saves the computation on padding. Positions restart at 0 in each example, so position embeddings are
the same, too. Only for attention, the tokens are moved back to padded rows [examples, heads, longest, size]. Causal
attention never looks at padding on the right, so it needs no mask and can use PyTorch's fastest kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_PACKED = "unlora_packed"
# Types of layers in which only attention mixes tokens. Convolutions and state space models mix them elsewhere.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Rows:
    """The mapping between packed tokens and slots of rows that are padded to the longest.

    Args:
        count: the number of rows.
        longest: the number of tokens in the longest row.
        slots: [tokens], the slot of each token: row · longest + position in the row.
        tokens: [rows · longest], the token in each slot. For padding, it can be any token.
    """

    count: int
    longest: int
    slots: Tensor
    tokens: Tensor

    def padded(self, states: Tensor) -> Tensor:
        """Unpack states [1, heads, tokens, size] to padded rows [rows, heads, longest, size]."""
        tokens, slots = self.tokens.to(states.device), self.slots.to(states.device)
        places: Tensor = _Unpack.apply(states.squeeze(0).transpose(0, 1), tokens, slots)
        return places.unflatten(0, (self.count, self.longest)).transpose(1, 2)

    def packed(self, states: Tensor) -> Tensor:
        """Pack padded rows [rows, longest, heads, size] to states [1, tokens, heads, size]."""
        return states.flatten(0, 1).index_select(0, self.slots.to(states.device))[None]


class _Unpack(torch.autograd.Function):
    """Put tokens into their slots. Padding has no gradient, so the backward pass reads only the slots of tokens."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, tokens: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return states.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return scaled dot-product attention [1, tokens, heads, size] within each of the `rows`.

    Queries, keys and values are [1, heads, tokens, size].

    Padding is at the end of each row, where causal attention does not look, so no mask is needed and the content of the
    padding does not matter. In three cases the packed rows are processed with `attention_mask` instead, which
    transformers computes from the positions so that rows do not attend to each other: without `rows` (the batch is not
    packed, or the model does not pass them on), with a position bias, and with a sliding window shorter than a row.
    """
    window = kwargs.get("sliding_window")
    if rows is None or kwargs.get("position_bias") is not None or (window and window < rows.longest):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = (rows.padded(states) for states in (query, key, value))
    return rows.packed(sdpa_attention_forward(module, *parts, None, **kwargs)[0]), None


AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, sdpa_mask)


def _can_pack(core: PreTrainedModel) -> bool:
    """Return whether the model takes position ids, uses PyTorch's attention, and mixes tokens nowhere else."""
    layers = getattr(core.config, "layer_types", None) or _ATTENTION_LAYERS
    return (
        core.config._attn_implementation == "sdpa"
        and core._supports_attention_backend
        and not core._is_stateful
        and set(layers) <= _ATTENTION_LAYERS
        and "position_ids" in inspect.signature(core.forward).parameters
    )


@contextmanager
def packing(core: PreTrainedModel) -> Iterator[None]:
    """Make `unlora.models.forward` pack the batches of this model inside the block, if the model supports it.

    The block has to contain the backward pass as well: gradient checkpointing runs layers again there, and must use the
    same attention.
    """
    before = core.config._attn_implementation
    if _can_pack(core):
        core.config._attn_implementation = _PACKED
    try:
        yield
    finally:
        core.config._attn_implementation = before


def is_packing(core: PreTrainedModel) -> bool:
    """Return whether batches of this model are currently packed."""
    return bool(core.config._attn_implementation == _PACKED)


def packed_inputs(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the model's inputs on its device: ids and positions [1, tokens] of the real tokens, and their `Rows`."""
    real = batch["attention_mask"].bool()
    places = batch["attention_mask"].cumsum(-1) - 1
    longest = int(places.max()) + 1
    first = torch.arange(len(real), device=real.device)[:, None] * longest
    slots = (first + places)[real]
    tokens = torch.zeros(len(real) * longest, dtype=torch.long, device=real.device)
    tokens[slots] = torch.arange(len(slots), device=real.device)
    return {
        "input_ids": batch["input_ids"][real][None].to(device),
        "position_ids": places[real][None].to(device),
        "rows": Rows(len(real), longest, slots.to(device), tokens.to(device)),
        "use_cache": False,
    }
