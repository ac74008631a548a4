"""What the model says at labelled positions, and nothing else: the head never sees a prompt or a pad."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlora.common.errors import InputError, Problem
from unlora.data.encoding import IGNORE_INDEX
from unlora.models.log_probabilities import token_logp
from unlora.models.packing import is_packing, packed_inputs


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
        return token_logp(self.logits, self.targets)

    @cached_property
    def counts(self) -> Tensor:
        """[examples] number of labelled tokens."""
        counts = self.example.new_zeros(self.examples)
        return counts.index_add(0, self.example, torch.ones_like(self.example))  # bincount waits for the device

    @cached_property
    def example_logp(self) -> Tensor:
        """[examples] log-probability of each row's labels, summed over its tokens."""
        return self.logp.new_zeros(self.examples).index_add(0, self.example, self.logp)

    def rows(self, start: int, stop: int) -> LabelledTokens:
        """The part that belongs to rows start..stop-1 of the batch, without references."""
        cut = _tokens_of(self.example, start, stop)
        return LabelledTokens(self.logits[cut], self.targets[cut], self.example[cut] - start, stop - start)

    def with_reference(self, reference: LabelledTokens) -> LabelledTokens:
        """The same beside what the reference model says of the same tokens."""
        return replace(self, ref_logits=reference.logits)


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of a batch at one layer. Tokens stand in the order of their examples.

    Args:
        states: [tokens, hidden], at the position before each labelled token.
        example: [tokens], the row of the batch that each belongs to.
        examples: how many rows the batch has.
        ref_states: [tokens, hidden] of the reference model, for losses that ask.
    """

    states: Tensor
    example: Tensor
    examples: int
    ref_states: Tensor | None = None

    def rows(self, start: int, stop: int) -> HiddenStates:
        """The part that belongs to rows start..stop-1 of the batch, without references."""
        cut = _tokens_of(self.example, start, stop)
        return HiddenStates(self.states[cut], self.example[cut] - start, stop - start)

    def with_reference(self, reference: HiddenStates) -> HiddenStates:
        """The same beside the reference model's states of the same tokens."""
        return replace(self, ref_states=reference.states)


Outputs = LabelledTokens | HiddenStates


def _tokens_of(example: Tensor, start: int, stop: int) -> slice:
    """Where the tokens of rows start..stop-1 stand."""
    first, last = torch.searchsorted(example, example.new_tensor([start, stop])).tolist()
    return slice(first, last)


def labelled_tokens(model: nn.Module, batch: Mapping[str, Any]) -> LabelledTokens:
    """Runs the model on `input_ids` and `attention_mask` and returns its predictions of `labels`.

    Labels are shifted here: the label at position t is predicted from position t - 1. Positions count from each row's
    first real token, so left and right padding give the same numbers. Of a batch on the CPU it is found out there which
    positions those are, so that nothing waits for the model's device.
    """
    core = causal_lm(model)
    labels, chosen = _labelled(batch)
    inputs, places = _arranged(core, batch, chosen)
    with head_sees_only(core, places):
        logits = model(**inputs).logits.squeeze(0)  # `[0]` would copy their gradient
    targets, example = (values.to(logits.device) for values in (labels[chosen], chosen.nonzero()[:, 0]))
    return LabelledTokens(logits, targets, example, len(labels))


def hidden_states(model: nn.Module, batch: Mapping[str, Any], layer: int = 7) -> HiddenStates:
    """The output of decoder layer `layer` (from 0) at the positions that predict `labels`; later layers are not run."""
    core = causal_lm(model)
    labels, chosen = _labelled(batch)
    inputs, places = _arranged(core, batch, chosen)
    with layers_up_to(core, layer) as last, head_sees_only(core, places[:0]):
        model(**inputs)
        states = last.output
    return HiddenStates(_at(states, places), chosen.nonzero()[:, 0].to(states.device), len(labels))


def _labelled(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """[rows, length - 1] the labels, each at the position that predicts it, and which of them are predicted at all."""
    labels = batch["labels"][:, 1:]
    # A row's first real token is predicted from nothing, also where padding on the left stands before it.
    return labels, (labels != IGNORE_INDEX) & batch["attention_mask"][:, :-1].bool()


def _arranged(core: nn.Module, batch: Mapping[str, Any], chosen: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The model's arguments on its device, packed or padded, and the places [chosen] of either, row by row."""
    device = core.get_input_embeddings().weight.device  # type: ignore[operator]
    positions = F.pad(chosen, (0, 1))  # a trailing column for the last position, which predicts nothing
    if is_packing(core):
        inputs, positions = packed_inputs(batch, device), positions[batch["attention_mask"].bool()]
    else:
        inputs = _padded_inputs(core, batch, device)
    return inputs, positions.flatten().nonzero()[:, 0].to(device)


def _padded_inputs(core: nn.Module, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    mask = batch["attention_mask"]
    inputs = {"input_ids": batch["input_ids"].to(device), "attention_mask": mask.to(device), "use_cache": False}
    if "position_ids" in inspect.signature(core.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0).to(device)
    return inputs


def _at(states: Tensor, places: Tensor) -> Tensor:
    """[places, hidden] of [rows, length, hidden]."""
    return states.flatten(0, 1).index_select(0, places.to(states.device))


def causal_lm(model: nn.Module) -> Any:
    """The transformers model inside wrappers such as DistributedDataParallel and PeftModel."""
    from accelerate.utils import extract_model_from_parallel
    from peft import PeftModel

    model = extract_model_from_parallel(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def head_sees_only(core: nn.Module, places: Tensor) -> Iterator[None]:
    """Within, the output embedding gets the hidden states at `places`, counted row by row, as one row.

    A hook, not a head of our own, so that whatever a model does to its logits afterwards (scaling, soft-capping)
    is still done.
    """
    head = core.get_output_embeddings()  # type: ignore[operator]

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_at(args[0], places)[None], *args[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def decoder_layers(core: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of decoder layers, the module that holds it, and its name there.

    Raises:
        InputError: the model has no list of that many modules as its configuration has layers.
    """
    depth = core.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    for owner in core.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return owner, name, child
    reason = f"it has no list of {depth} decoder layers"
    raise InputError(Problem("model", type(core).__name__, reason, "use a loss that reads no hidden states"))


def check_layer(model: nn.Module, layer: int) -> list[Problem]:
    """What is wrong with `layer` as an index of the model's decoder layers."""
    depth = len(decoder_layers(causal_lm(model))[2])
    if 0 <= layer < depth:
        return []
    reason = f"the model has {depth} decoder layers"
    return [Problem("loss_kwargs['layer']", layer, reason, f"use a layer from 0 to {depth - 1}")]


class _Recorder(nn.Module):
    """Runs a decoder layer and keeps its output.

    A hook on the layer would run inside its gradient checkpoint, where a re-entrant one records no gradient.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers for more than a forward pass, such as the kind of their attention.
        return super().__getattr__(name) if name == "layer" else getattr(self.layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.layer(*args, **kwargs)
        self.output: Tensor = result[0] if isinstance(result, tuple) else result
        return result


@contextmanager
def layers_up_to(core: nn.Module, layer: int) -> Iterator[_Recorder]:
    """Within, decoder layers after `layer` are not there; yields what keeps the output of `layer`."""
    owner, name, layers = decoder_layers(core)
    last = _Recorder(layers[layer])
    setattr(owner, name, nn.ModuleList([*layers[:layer], last]))
    try:
        yield last
    finally:
        setattr(owner, name, layers)
