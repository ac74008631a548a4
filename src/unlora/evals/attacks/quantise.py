"""Quantisation: rounding the weights may undo the small changes of unlearning, so that the knowledge comes back.

Zhang et al., ICLR 2025 (https://arxiv.org/abs/2410.16454).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unlora.adapter.targets import base_modules, target_shapes
from unlora.evals.attacks.interface import Case, Materials, UnavailableError, probe
from unlora.settings import AttackConfig

# Bits per weight -> group size, the number of weights of an output channel that share a step (None for all of them).
FORMATS = {8: None, 4: 128}


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return two cases: 8 bits with a step per output channel, and 4 bits with a step per 128 weights of a channel."""
    if getattr(model, "is_quantized", False):
        raise UnavailableError("the model is quantised already", "unlearn a model with floating-point weights")
    everything = probe(materials.forget, materials)
    return [
        Case(f"{bits} bits", everything, retain=True, change=partial(quantised, bits=bits, group_size=group_size))
        for bits, group_size in FORMATS.items()
    ]


def round_to_nearest(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """Round weights symmetrically to nearest: step·round(w / step), with step = max|w| / (2^(bits−1) − 1) over a group.

    Args:
        weight: [out, in].
        bits: bits per weight.
        group_size: number of neighbouring weights of a row that share a step. By default, the whole row.

    Returns:
        [out, in], the rounded weights in the same dtype. Each differs by at most step / 2.
    """
    largest = 2 ** (bits - 1) - 1
    groups = weight.float().split(group_size or weight.shape[1], dim=1)
    smallest = torch.finfo(torch.float32).tiny  # the step of a group of zeros
    steps = [(group.abs().amax(dim=1, keepdim=True) / largest).clamp_min(smallest) for group in groups]
    rounded = [(group / step).round() * step for group, step in zip(groups, steps, strict=True)]
    return torch.cat(rounded, dim=1).to(weight.dtype)


@contextmanager
def quantised(model: nn.Module, *, bits: int, group_size: int | None) -> Iterator[nn.Module]:
    """Merge the adapters and round the weights of all linear layers except the head. At the end, restore them."""
    modules: dict[str, Any] = dict(base_modules(model))
    linear = {name: modules[name] for name in target_shapes(model, None)}
    own = {name: module.weight.detach().clone() for name, module in linear.items()}
    try:
        if isinstance(model, PeftModel):
            model.merge_adapter()
        with torch.no_grad():
            for module in linear.values():
                transposed = isinstance(module, Conv1D)  # it stores [in, out]
                weight = module.weight.T if transposed else module.weight
                rounded = round_to_nearest(weight, bits, group_size)
                module.weight.copy_(rounded.T if transposed else rounded)
        yield model
    finally:
        if isinstance(model, PeftModel):
            model.unmerge_adapter()  # it subtracts what was added, with rounding errors
        with torch.no_grad():
            for name, module in linear.items():
                module.weight.copy_(own[name])
