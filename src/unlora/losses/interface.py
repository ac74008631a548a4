"""The interface between losses and the trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from unlora.common.errors import InputError, Problem
from unlora.models.forward import Outputs, labelled_tokens


@dataclass(frozen=True)
class Loss:
    """A loss function and its requirements.

    Call it with the outputs of the forward pass and the settings: `LOSSES["npo"](out, beta=0.2)`.

    Args:
        function: a pure function that returns a scalar tensor. Arguments without a default are tensors, named like the
            fields and properties of the outputs of `forward` (`logp`, `logits`, ...). Arguments with a default are the
            settings of the loss. The trainer also computes `ref_logp`, `ref_logits` or `ref_states`, the outputs of the
            original model, if they are arguments: `ref_logp` once before training, the others at each step with the
            adapters disabled. For an argument `lesson`, it provides the lessons of a teacher.
        formula: the equation, as in the table of docs/methods.md.
        paper: the citation.
        retain: the default retain loss for a forget loss; "none" for no retain term.
        reads: the columns of the forget set that the model is run on, in this order: the answers to "forget", the
            "alternate" answers, or both.
        forward: (model, batch, **settings) -> the outputs. A forget loss and its retain loss must have the same.
        check: (model, **settings) -> problems of the settings for that model.
        update_weight: (λ, retain loss, **settings) -> λ after an optimiser step, if λ is not constant. An argument
            `epoch` receives the number of epochs trained so far.
        measures: {name: pure function of the same tensors}. Their values are logged beside the loss, as means over the
            same items. `teacher_kl` and `teacher_excess` show when the model agrees with its teacher.
        nats: whether the loss is in nats, so that a uniform guess costs at most ln(vocabulary).
        mean_over: the unit of the mean: the labelled tokens or the pairs of a batch.
    """

    function: Callable[..., Tensor]
    formula: str
    paper: str
    retain: str = "nll"
    reads: tuple[str, ...] = ("forget",)
    forward: Callable[..., Outputs] = labelled_tokens
    check: Callable[..., list[Problem]] | None = None
    update_weight: Callable[..., float] | None = None
    measures: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    nats: bool = True
    mean_over: Literal["tokens", "pairs"] = "tokens"

    def __call__(self, out: Outputs, **settings: Any) -> Tensor:
        """Return the loss, a scalar. Settings that only `forward` or `update_weight` take are ignored."""
        tensors = {name: getattr(out, name) for name in self.inputs}
        value = self.function(**tensors, **own_settings(self.function, settings))
        if not isinstance(value, Tensor) or value.dim():
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            reason, fix = f"it returned {shown} instead of a scalar tensor", "return a mean over tokens or rows"
            raise InputError(Problem("loss", self.function.__name__, reason, fix))
        return value

    def progress(self, out: Outputs) -> dict[str, Tensor]:
        """Return {name: scalar} of all measures."""
        tensors = {name: getattr(out, name) for name in self.inputs}
        return {name: measure(**tensors) for name, measure in self.measures.items()}

    @cached_property
    def inputs(self) -> list[str]:
        """The names of the tensors that the function takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the loss with their defaults, from `forward`, `function` and `update_weight`."""
        functions = [function for function in (self.forward, self.function, self.update_weight) if function]
        parameters = [part for function in functions for part in inspect.signature(function).parameters.values()]
        return {part.name: part.default for part in parameters if part.default is not inspect.Parameter.empty}

    @property
    def needs_reference_logp(self) -> bool:
        """Whether the original model's log-probability of each example is computed before training."""
        return "ref_logp" in self.inputs

    @property
    def needs_teacher(self) -> bool:
        """Whether the lessons of a teacher are needed for training."""
        return "lesson" in self.inputs

    @property
    def needs_reference_pass(self) -> bool:
        """Whether the original model is run at each step."""
        return "ref_logits" in self.inputs or "ref_states" in self.inputs

    def model_problems(self, model: nn.Module, settings: Mapping[str, Any]) -> list[Problem]:
        """Return the problems of the settings for this model.

        Args:
            model: the model to train.
            settings: all settings of the loss.
        """
        return self.check(model, **own_settings(self.check, settings)) if self.check else []


def own_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a function of the loss takes."""
    return {name: settings[name] for name in inspect.signature(function).parameters if name in settings}
