"""Run a model and compute its outputs only at labelled positions.

The logits of a batch are often its largest tensor: [examples, length, vocabulary]. No loss reads the logits of prompts
and padding, so the output head only gets the hidden states of labelled positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlora.common.errors import InputError, Problem
from unlora.data.encoding import IGNORE_INDEX
from unlora.data.lessons import Lesson
from unlora.models.log_probabilities import token_logp
from unlora.models.packing import is_packing, packed_inputs


@dataclass(frozen=True)
class LabelledTokens:
    """A model's predictions for the labelled tokens of a batch, in the order of the batch's rows.

    Args:
        logits: [tokens, vocabulary], at the position before each labelled token.
        targets: [tokens], the labelled tokens.
        example: [tokens], the row of the batch that each token belongs to.
        examples: the number of rows in the batch.
        ref_logp: [examples], the reference model's summed log-probability of each row's labels in nats, for losses that
            need it.
        ref_logits: [tokens, vocabulary], the reference model's logits, for losses that need them.
        lesson: a teacher's predictions for these tokens, for losses that need them.
    """

    logits: Tensor
    targets: Tensor
    example: Tensor
    examples: int
    ref_logp: Tensor | None = None
    ref_logits: Tensor | None = None
    lesson: Lesson | None = None

    @cached_property
    def logp(self) -> Tensor:
        """[tokens], the log-probability of each labelled token in nats, at least float32."""
        return token_logp(self.logits, self.targets)

    @cached_property
    def counts(self) -> Tensor:
        """[examples], the number of labelled tokens in each row."""
        counts = self.example.new_zeros(self.examples)
        return counts.index_add(0, self.example, torch.ones_like(self.example))  # bincount would wait for the GPU

    @cached_property
    def example_logp(self) -> Tensor:
        """[examples], the log-probability of each row's labels in nats, summed over its tokens."""
        return self.logp.new_zeros(self.examples).index_add(0, self.example, self.logp)

    def rows(self, start: int, stop: int) -> LabelledTokens:
        """Return the tokens of the rows start..stop-1 of the batch, without reference values and lesson."""
        cut = _tokens_of(self.example, start, stop)
        return LabelledTokens(self.logits[cut], self.targets[cut], self.example[cut] - start, stop - start)

    def with_reference(self, reference: LabelledTokens) -> LabelledTokens:
        """Return a copy with the reference model's logits for the same tokens."""
        return replace(self, ref_logits=reference.logits)


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of the labelled tokens of a batch at one layer, in the order of the batch's rows.

    Args:
        states: [tokens, hidden], at the position before each labelled token.
        example: [tokens], the row of the batch that each token belongs to.
        examples: the number of rows in the batch.
        ref_states: [tokens, hidden], the reference model's hidden states, for losses that need them.
    """

    states: Tensor
    example: Tensor
    examples: int
    ref_states: Tensor | None = None

    def rows(self, start: int, stop: int) -> HiddenStates:
        """Return the tokens of the rows start..stop-1 of the batch, without reference values."""
        cut = _tokens_of(self.example, start, stop)
        return HiddenStates(self.states[cut], self.example[cut] - start, stop - start)

    def with_reference(self, reference: HiddenStates) -> HiddenStates:
        """Return a copy with the reference model's hidden states of the same tokens."""
        return replace(self, ref_states=reference.states)


Outputs = LabelledTokens | HiddenStates


def _tokens_of(example: Tensor, start: int, stop: int) -> slice:
    """Return the slice of tokens that belong to the rows start..stop-1."""
    first, last = torch.searchsorted(example, example.new_tensor([start, stop])).tolist()
    return slice(first, last)


def labelled_tokens(model: nn.Module, batch: Mapping[str, Any]) -> LabelledTokens:
    """Run the model on `input_ids` and `attention_mask` [examples, length], and return its predictions of `labels`.

    Labels are shifted here: the label at position t is predicted from position t - 1. Position ids start at each row's
    first real token, so left and right padding give the same results. The labelled positions are computed on the device
    of the batch, usually the CPU, because computing them on a GPU would force a synchronisation.
    """
    core = causal_lm(model)
    labels, chosen = _labelled(batch)
    inputs, places = _model_inputs(core, batch, chosen)
    with _head_limited_to(core, places):
        logits = model(**inputs).logits.squeeze(0)  # the backward pass of `[0]` would copy the gradient
    targets, example = (values.to(logits.device) for values in (labels[chosen], chosen.nonzero()[:, 0]))
    return LabelledTokens(logits, targets, example, len(labels))


def hidden_states(model: nn.Module, batch: Mapping[str, Any], layer: int = 7) -> HiddenStates:
    """Return the output of decoder layer `layer` (from 0) at the positions that predict `labels`.

    Later layers are not run.
    """
    core = causal_lm(model)
    labels, chosen = _labelled(batch)
    inputs, places = _model_inputs(core, batch, chosen)
    # The logits are not used, so the head gets no positions at all.
    with _layers_up_to(core, layer) as last, _head_limited_to(core, places[:0]):
        model(**inputs)
        states = last.output
    if states.dim() != 3:
        reason = f"its decoder layers return {states.dim()} dimensions instead of [examples, tokens, hidden]"
        fix = "use a loss that reads no hidden states"
        raise InputError(Problem("model", type(core).__name__, reason, fix))
    return HiddenStates(_at(states, places), chosen.nonzero()[:, 0].to(states.device), len(labels))


def _labelled(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the labels [examples, length - 1] at the positions that predict them, and a mask of those that count."""
    labels = batch["labels"][:, 1:]
    # The first real token of a row cannot be predicted, even if there is padding before it.
    return labels, (labels != IGNORE_INDEX) & batch["attention_mask"][:, :-1].bool()


def _model_inputs(core: PreTrainedModel, batch: Mapping[str, Any], chosen: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Return the model's inputs, packed or padded, and the indices of the chosen positions in them.

    Args:
        core: the model.
        batch: as for `labelled_tokens`.
        chosen: [examples, length - 1], whether a position predicts a label.

    Returns:
        The inputs on the model's device, and the [tokens] indices of the chosen positions, counted row by row.
    """
    device = core.get_input_embeddings().weight.device
    positions = F.pad(chosen, (0, 1))  # the last position predicts nothing
    if is_packing(core):
        inputs, positions = packed_inputs(batch, device), positions[batch["attention_mask"].bool()]
    else:
        inputs = _padded_inputs(core, batch, device)
    return inputs, positions.flatten().nonzero()[:, 0].to(device)


def _padded_inputs(core: PreTrainedModel, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    mask = batch["attention_mask"]
    inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": mask.to(device), "use_cache": False}
    if "position_ids" in inspect.signature(core.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).to(device)
    return inputs


def _at(states: Tensor, places: Tensor) -> Tensor:
    """Select [places, hidden] from states [rows, length, hidden]. Places are indices of tokens, counted row by row."""
    return states.flatten(0, 1).index_select(0, places.to(states.device))


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside wrappers such as DistributedDataParallel and PeftModel."""
    model = unwrapped(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside wrappers such as DistributedDataParallel.

    A model without a wrapper is returned directly, because accelerate's function checks each time whether DeepSpeed is
    installed. If it is, the check takes 10 ms, several times in each training step.
    """
    return model if isinstance(model, PreTrainedModel | PeftModel) else extract_model_from_parallel(model)


@contextmanager
def _head_limited_to(core: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Limit the output head to the hidden states at `places`, counted row by row, as a single row [1, places, hidden].

    A hook on the model's own head is used because calling the head directly would skip what some models do to their
    logits afterwards, such as scaling and soft-capping.
    """
    head = core.get_output_embeddings()

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_at(args[0], places)[None], *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def text_part(core: PreTrainedModel) -> nn.Module:
    """Return the text decoder of a vision-language model, or any other model itself."""
    composite = core.config.get_text_config() is not core.config
    decoder: nn.Module = core.get_decoder() if composite else core
    return decoder


def decoder_layers(core: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that owns the list of decoder layers, the list's attribute name, and the list.

    Architectures name this list differently, so it is found by its length.

    Raises:
        InputError: the model has no module list whose length is the number of layers in its configuration.
    """
    depth = core.config.get_text_config().num_hidden_layers
    for owner in text_part(core).modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return owner, name, child
    reason = f"it has no list of {depth} decoder layers"
    raise InputError(Problem("model", type(core).__name__, reason, "use a loss that reads no hidden states"))


def check_layer(model: nn.Module, layer: int) -> list[Problem]:
    """Check that `layer` is an index of the model's decoder layers."""
    depth = len(decoder_layers(causal_lm(model))[2])
    if 0 <= layer < depth:
        return []
    reason = f"the model has {depth} decoder layers"
    return [Problem("loss_kwargs['layer']", layer, reason, f"use a layer from 0 to {depth - 1}")]


class _Recorder(nn.Module):
    """Run a decoder layer and keep its output.

    A forward hook is not used, because it would run inside the layer's gradient checkpoint. A re-entrant checkpoint
    disables gradients there, so the kept output would have none.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        # Models also read attributes of their layers, such as the type of attention.
        return super().__getattr__(name) if name == "layer" else getattr(self.layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.layer(*args, **kwargs)
        self.output: Tensor = result[0] if isinstance(result, tuple) else result
        return result


@contextmanager
def _layers_up_to(core: PreTrainedModel, layer: int) -> Iterator[_Recorder]:
    """Remove the decoder layers after `layer`, and yield the module that records the output of `layer`."""
    owner, name, layers = decoder_layers(core)
    last = _Recorder(layers[layer])
    setattr(owner, name, nn.ModuleList([*layers[:layer], last]))
    try:
        yield last
    finally:
        setattr(owner, name, layers)
