"""What a loss is, and what the trainer must provide for it."""

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
    """A loss, and what the trainer must provide for it.

    Calling it with what the model predicts and with settings computes it: `LOSSES["npo"](out, beta=0.2)`.

    Args:
        function: a pure function that returns a scalar tensor. Arguments without a default are tensors, named like
            the fields and properties of what `forward` returns (`logp`, `logits`, ...). Arguments with a default are
            the loss's settings. Naming `ref_logp`, `ref_logits` or `ref_states` asks for the original model's
            predictions: `ref_logp` is computed once, the others at each step with the adapters off. Naming `lesson`
            asks for the lessons of a teacher.
        formula: the equation, as in the table of docs/methods.md.
        paper: the citation.
        retain: the retain loss that goes with a forget loss unless the user chooses another; "none" for no retain
            term.
        reads: the columns of the forget set that go through the model, in this order: the answers to "forget", the
            "alternate" answers, or both.
        forward: (model, batch, **settings) -> the model's predictions; the same for a forget loss and its retain loss.
        check: (model, **settings) -> what is wrong with the settings for that model.
        update_weight: (λ, retain loss, **settings) -> λ after an optimiser step, if λ is not constant. An argument
            `epoch` is given how many epochs have passed.
        measures: pure functions of the same tensors by name. Their values are logged beside the loss, as means over
            the same items. `teacher_kl` and `teacher_excess` show when the model agrees with its teacher.
        nats: whether its value is in nats, so that guessing blindly costs at most ln(vocabulary).
        mean_over: what it is the mean of: the labelled tokens or the pairs of a batch.
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
        """Return the loss, a scalar. Settings of its forward pass or of λ are ignored here."""
        tensors = {name: getattr(out, name) for name in self.inputs}
        value = self.function(**tensors, **own_settings(self.function, settings))
        if not isinstance(value, Tensor) or value.dim():
            shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            reason, fix = f"it returned {shown} instead of a scalar tensor", "return a mean over tokens or rows"
            raise InputError(Problem("loss", self.function.__name__, reason, fix))
        return value

    def progress(self, out: Outputs) -> dict[str, Tensor]:
        """Return the measures of what the model predicts, each a scalar."""
        tensors = {name: getattr(out, name) for name in self.inputs}
        return {name: measure(**tensors) for name, measure in self.measures.items()}

    @cached_property
    def inputs(self) -> list[str]:
        """The names of the tensors that the function takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The loss's own settings with their defaults: those of its forward pass, its function and its update of λ."""
        functions = [function for function in (self.forward, self.function, self.update_weight) if function]
        parameters = [part for function in functions for part in inspect.signature(function).parameters.values()]
        return {part.name: part.default for part in parameters if part.default is not inspect.Parameter.empty}

    @property
    def needs_reference_logp(self) -> bool:
        """Whether the original model's log-probability of each example is computed before training."""
        return "ref_logp" in self.inputs

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's lessons are made before training."""
        return "lesson" in self.inputs

    @property
    def needs_reference_pass(self) -> bool:
        """Whether the original model is run at each step."""
        return "ref_logits" in self.inputs or "ref_states" in self.inputs

    def model_problems(self, model: nn.Module, settings: Mapping[str, Any]) -> list[Problem]:
        """Return what is wrong with the loss's settings (all of them) for this model."""
        return self.check(model, **own_settings(self.check, settings)) if self.check else []


def own_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a loss's settings that one of its functions takes."""
    return {name: settings[name] for name in inspect.signature(function).parameters if name in settings}
