"""Relearning: the model is fine-tuned on a small part of the forget set, which may bring back the rest.

Hu et al., ICLR 2025 (https://arxiv.org/abs/2406.13356).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from peft import LoraConfig
from torch import nn

from unlora.adapter import attach_adapters, check_adapter_settings, detach_adapters
from unlora.common.errors import raise_if
from unlora.data import Example, iter_batches, padding_id
from unlora.data.batching import BatchLimit
from unlora.data.encoding import count_labels
from unlora.evals.attacks.interface import Case, Materials, UnavailableError, encode_rows, probe, split
from unlora.models.batches import out_of_memory
from unlora.models.forward import labelled_tokens
from unlora.models.memory import batch_limit
from unlora.settings import AttackConfig


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return a case for each share of the forget set and each seed. Shares with equal numbers of rows are merged."""
    rows = len(materials.forget)
    if rows < 2:
        reason = "it is fine-tuned on some rows and measured on others"
        raise UnavailableError(reason, "give at least 2 different forget rows")
    raise_if(check_adapter_settings(model, _adapter_settings(config)))
    shares: dict[int, float] = {}
    for percent in config.relearn_percent:
        shares.setdefault(min(max(round(rows * percent / 100), 1), rows - 1), percent)
    return [_case(materials, config, *share, seed) for share in shares.items() for seed in range(config.seeds)]


def _case(materials: Materials, config: AttackConfig, count: int, percent: float, seed: int) -> Case:
    shown, rest = split(materials.forget, count, seed)
    examples, pad_id = encode_rows(shown, materials.text_format), padding_id(materials.text_format.tokenizer)
    change = partial(relearned, examples=examples, config=config, pad_id=pad_id, seed=seed)
    name = f"{percent:g} % ({count} of {len(materials.forget)})"
    return Case(name, probe(rest, materials), change=change)


def _adapter_settings(config: AttackConfig) -> LoraConfig:
    """Return the settings of the attacker's adapter: plain LoRA on all linear layers."""
    return LoraConfig(r=config.r, lora_alpha=2 * config.r, target_modules="all-linear")


@contextmanager
def relearned(
    model: nn.Module, *, examples: Sequence[Example], config: AttackConfig, pad_id: int, seed: int
) -> Iterator[nn.Module]:
    """Attach a LoRA adapter trained on `examples`, and remove it at the end. The model's own adapters are frozen.

    It is trained by AdamW without weight decay at a constant learning rate, on batches drawn with `seed`.
    """
    torch.manual_seed(seed)
    attacked = attach_adapters(model, _adapter_settings(config))
    try:
        _train(attacked, examples, config, pad_id, seed)
        yield attacked
    finally:
        detach_adapters(attacked).eval()


def _train(model: nn.Module, examples: Sequence[Example], config: AttackConfig, pad_id: int, seed: int) -> None:
    assert config.learning_rate is not None
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    drawn, size = random.Random(seed), min(config.per_device_train_batch_size, len(examples))
    limit = batch_limit(model, size, on_cpu=size, backward=True)
    model.train()
    for _ in range(config.relearn_steps):
        batch = drawn.sample(examples, size)
        while (failure := out_of_memory(partial(_add_gradients, model, batch, limit, pad_id))) is not None:
            limit.halve(failure)
            optimiser.zero_grad()
        optimiser.step()
        optimiser.zero_grad()


def _add_gradients(model: nn.Module, examples: Sequence[Example], limit: BatchLimit, pad_id: int) -> None:
    """Add the gradients of the mean NLL of all labels, in as many passes as the limit requires."""
    labels = count_labels(examples)
    for batch in iter_batches(examples, limit, pad_id, sort=False):
        (-labelled_tokens(model, batch).logp.sum() / labels).backward()
