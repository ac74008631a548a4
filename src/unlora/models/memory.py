"""Fit the work to the memory of a device: the maximum batch size, and activation checkpointing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from unlora.common.distributed import in_lockstep
from unlora.common.errors import InputError, Problem
from unlora.data.batching import BatchLimit
from unlora.models.forward import causal_lm

# Share of the free memory to plan for a batch. It is low because the estimate of a batch's memory is rough.
_SHARE = 0.6
# Maximum number of tokens in a batch: a GPU is not faster with more. Generation may have more, because each of its
# steps computes only one token of each row.
_MOST_TOKENS, _MOST_CACHED = 2**14, 2**16
# Rows in a batch in lockstep, where all processes need the same batches although their free memory may differ.
_IN_LOCKSTEP = 16
# Limits that earlier batches of a model have reduced: model -> arguments of `batch_limit` -> limit.
_known: WeakKeyDictionary[nn.Module, dict[tuple[int | bool | None, ...], BatchLimit]] = WeakKeyDictionary()


def batch_limit(
    model: nn.Module,
    rows: int | None,
    *,
    on_cpu: int,
    backward: bool = False,
    new_tokens: int = 0,
    reserved: int = 0,
) -> BatchLimit:
    """Return the maximum size of a model's batches.

    Calls with the same arguments return the same object, so that a limit that was halved stays halved.

    Args:
        model: a causal LM, with or without adapters.
        rows: the user's maximum number of examples, or None to fill the memory of a GPU.
        on_cpu: the number of examples on a CPU if `rows` is None. Small batches are as fast there and need less memory.
        backward: whether activations are kept for a backward pass.
        new_tokens: the number of tokens generated after each example.
        reserved: bytes of the free memory that will be used for something else.

    Raises:
        InputError: a batch would have no rows.
    """
    if rows is not None and rows < 1:
        raise InputError(Problem("batch_size", rows, "a batch has at least one example", "use at least 1"))
    core = causal_lm(model)
    limits = _known.setdefault(core, {})
    key = (rows, on_cpu, backward, new_tokens)
    if key not in limits:
        limits[key] = _new_limit(core, rows, on_cpu, backward, new_tokens, reserved)
    return limits[key]


def _new_limit(
    core: PreTrainedModel, rows: int | None, on_cpu: int, backward: bool, new_tokens: int, reserved: int
) -> BatchLimit:
    if rows is not None or core.device.type != "cuda" or in_lockstep():
        return BatchLimit(rows or (_IN_LOCKSTEP if in_lockstep() else on_cpu), extra=new_tokens)
    held = torch.cuda.memory_reserved(core.device) - torch.cuda.memory_allocated(core.device)
    free = torch.cuda.mem_get_info(core.device)[0] + held - reserved
    tokens = int(_SHARE * free / token_bytes(core, backward, generating=new_tokens > 0))
    return BatchLimit(tokens=min(tokens, _MOST_CACHED if new_tokens else _MOST_TOKENS), extra=new_tokens)


def enable_checkpointing(model: nn.Module, settings: Mapping[str, Any] | None = None) -> None:
    """Recompute the activations of a model in the backward pass. transformers 5.24 has renamed the method for this.

    Args:
        model: a model, optionally with adapters. It checkpoints only in training mode.
        settings: settings of `torch.utils.checkpoint`.
    """
    core = causal_lm(model)
    enable = getattr(core, "activation_checkpointing_enable", None) or core.gradient_checkpointing_enable
    enable(settings)


def token_bytes(core: PreTrainedModel, backward: bool, generating: bool = False) -> int:
    """Estimate the memory per token of a batch in bytes, as in docs/scaling.md with all tokens labelled."""
    config, size = core.config.get_text_config(), core.dtype.itemsize
    hidden, layers = config.hidden_size, config.num_hidden_layers
    wide = 4 * (getattr(config, "intermediate_size", None) or 4 * hidden)
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in core.modules())
    kept = layers if backward and not checkpointed else 1
    states = (8.6 * hidden + wide) * size * kept
    if backward and checkpointed:
        states += hidden * size * layers
    if generating:  # keys and values are cached, and only the last token of a row has logits
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        share = heads / config.num_attention_heads
        return int(states + 2 * layers * hidden * share * size)
    return int(states + 2 * config.vocab_size * max(size, 4))
