"""The forget and retain losses by name, and which of them and of their settings go together.

To add one to the package, write its function, its entry here, its test, and its row in docs/methods.md (a test compares
them). Your own code adds one with `register_loss`, without changing the package (docs/how-to/own-loss.md).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.common.plugins import register, unknown_choice
from unlora.losses import distillation, dual, forget, hidden, preference, retain
from unlora.models.forward import HiddenStates, LabelledTokens, Outputs, check_layer, hidden_states, labelled_tokens

# What a forward pass returns -> the names of the tensors that a loss can take from it.
_TENSORS = {
    labelled_tokens: [*(part.name for part in fields(LabelledTokens)), "logp", "counts", "example_logp"],
    hidden_states: [part.name for part in fields(HiddenStates)],
}


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


_ASCENT = "mean_t log p(y_t)"
_TOFU = "Maini et al. 2024 (arXiv 2401.06121)"
_RMU = "Li et al. 2024 (arXiv 2403.03218)"
LOSSES: dict[str, Loss] = {
    "ga": Loss(forget.gradient_ascent, _ASCENT, _TOFU, retain="none"),
    "gd": Loss(forget.gradient_ascent, _ASCENT, "Liu et al. 2022 (arXiv 2203.12817)"),
    "kl": Loss(forget.gradient_ascent, _ASCENT, _TOFU, retain="kl"),
    "ihl": Loss(forget.inverted_hinge, "mean_t 1 + p(y_t) − max_{v≠y_t} p(v)", "Cha et al. 2025 (arXiv 2408.06621)"),
    "distil": Loss(
        distillation.distillation,
        "mean_t τ²·KL_τ(t ‖ p) + μ·max(0, log p(y_t) − log t(y_t)), t a teacher",
        "Eldan and Russinovich 2023 (arXiv 2310.02238)",
        retain="soft_kl",
        measures={"teacher_kl": distillation.teacher_kl, "teacher_excess": distillation.teacher_excess},
    ),
    "npo": Loss(
        preference.negative_preference,
        "−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i)))",
        "Zhang et al. 2024 (arXiv 2404.05868)",
        mean_over="pairs",
    ),
    "npo_mean": Loss(
        preference.negative_preference_of_means,
        "−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))/n_i)",
        "Kim et al. 2025 (arXiv 2508.21300)",
        mean_over="pairs",
    ),
    "simnpo": Loss(
        preference.simple_negative_preference,
        "−(2/β)·mean_i log σ(β·(NLL(y_i)/n_i − δ))",
        "Fan et al. 2024 (arXiv 2410.07163)",
        mean_over="pairs",
    ),
    "dpo": Loss(
        preference.direct_preference,
        "−(2/β)·mean_i log σ(β·(r(y'_i) − r(y_i))), r = log π − log π_ref",
        "Rafailov et al. 2023 (arXiv 2305.18290)",
        reads=("forget", "alternate"),
        mean_over="pairs",
    ),
    "idk": Loss(retain.nll, "mean_t −log p(y'_t)", _TOFU, reads=("alternate",)),
    "rmu": Loss(
        hidden.misdirection,
        "mean_t (h_t − c·u/‖u‖)² at the output of decoder layer ℓ",
        _RMU,
        retain="hidden_mse",
        forward=hidden_states,
        check=check_layer,
    ),
    "undial": Loss(
        forget.adjusted_distillation,
        "mean_t −Σ_v q(v)·log p(v), q = softmax(z_ref − β·1_{y_t})",
        "Dong et al. 2025 (arXiv 2402.10052)",
    ),
    "wga": Loss(forget.weighted_ascent, "mean_t sg(p(y_t))^β · log p(y_t)", "Wang et al. 2025 (arXiv 2502.19301)"),
    "satimp": Loss(
        forget.saturation_importance,
        "mean_t sg(p(y_t)^β₁ · (1 − p(y_t))^β₂) · log p(y_t)",
        "Yang et al. 2025 (arXiv 2505.11953)",
    ),
    "ceu": Loss(
        forget.cross_entropy_unlearning,
        "mean_t −Σ_v q(v)·log p(v), q = softmax(sg(z) with z_{y_t} = −∞)",
        "Yang 2025 (arXiv 2503.01224)",
        retain="none",
    ),
    "pdu": Loss(
        forget.logit_margin,
        "mean_t (max_v z_v − mean_v z_v)²; after each update λ ← max(0, λ + η·(retain loss − ε))",
        "Entesari et al. 2025 (arXiv 2506.05314)",
        update_weight=dual.dual_ascent,
    ),
}
RETAIN_LOSSES: dict[str, Loss] = {
    "nll": Loss(retain.nll, "mean_t −log p(y_t)", _TOFU),
    "kl": Loss(retain.kl_to_reference, "mean_t KL(ref ‖ π)", _TOFU),
    "soft_kl": Loss(
        distillation.softened_kl,
        "mean_t τ²·KL_τ(ref ‖ π), softened by τ = 2",
        "Hinton et al. 2015 (arXiv 1503.02531)",
    ),
    "hidden_mse": Loss(
        hidden.hidden_error,
        "mean_t (h_t − h_ref,t)² at the same layer",
        _RMU,
        forward=hidden_states,
        nats=False,
    ),
}
NO_RETAIN = "none"
# Tensors that are computed for the forget set only.
_OF_FORGET_SET = ("ref_logp", "lesson")
# Settings that the loss is divided by or scaled with. All others may be 0.
_POSITIVE = ("beta", "steering_coeff", "dual_step_size", "temperature")


def register_loss(name: str, loss: Loss, losses: dict[str, Loss] = LOSSES) -> None:
    """Make a loss known by a name in this process: to `UnlearnConfig`, the trainer and every command.

    Args:
        name: the value of `loss` (or `retain_loss`) that chooses it.
        loss: the loss.
        losses: the table to add it to: `LOSSES`, or `RETAIN_LOSSES` for a retain loss.

    Raises:
        InputError: the name is taken, its function takes a tensor that there is not, or its own retain loss is unknown
            or takes tensors of another forward pass.
    """
    kind = "loss" if losses is LOSSES else "retain loss"
    if name == NO_RETAIN:
        raise InputError(Problem("name", name, "it stands for no retain loss", "choose another name"))
    raise_if(_input_problems(loss, of_forget_set=losses is LOSSES))
    if losses is LOSSES:
        if loss.retain not in (NO_RETAIN, *RETAIN_LOSSES):
            raise InputError(unknown_name("retain", loss.retain, [NO_RETAIN, *RETAIN_LOSSES]))
        raise_if(_retain_problems(name, loss, loss.retain))
    register(kind, losses, name, loss)


def _input_problems(loss: Loss, of_forget_set: bool) -> Iterator[Problem]:
    """Yield the tensors that the function takes and the trainer cannot give."""
    known = _TENSORS.get(loss.forward)
    if known is None:  # a forward pass of the user's own
        return
    known = [name for name in known if of_forget_set or name not in _OF_FORGET_SET]
    for name in loss.inputs:
        if name not in known:
            yield unknown_name(f"argument of {loss.function.__name__}", name, known)


def check_losses(loss: str, retain_loss: str | None, settings: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a choice of losses and with the settings of the forget loss."""
    problems = []
    if loss not in LOSSES:
        problems.append(unknown_choice("loss", loss, LOSSES))
    if retain_loss not in (None, NO_RETAIN, *RETAIN_LOSSES):
        problems.append(unknown_choice("retain_loss", retain_loss, [NO_RETAIN, *RETAIN_LOSSES]))
    elif loss in LOSSES:
        problems += _retain_problems(loss, LOSSES[loss], retain_loss or LOSSES[loss].retain)
    if loss in LOSSES:
        problems += _setting_problems(loss, settings)
    return problems


def _retain_problems(loss: str, entry: Loss, retain_loss: str) -> Iterator[Problem]:
    """Yield why a forget loss and a known retain loss do not go together."""
    if retain_loss == NO_RETAIN:
        if entry.update_weight:
            reason = f"{loss!r} adjusts the weight of a retain loss, and there would be none"
            yield Problem("retain_loss", retain_loss, reason, f"use {entry.retain!r}")
    elif entry.retain == NO_RETAIN:
        fix = "use 'gd', which is the same with a retain term" if loss == "ga" else "remove retain_loss"
        yield Problem("retain_loss", retain_loss, f"{loss!r} is defined without a retain term", fix)
    elif RETAIN_LOSSES[retain_loss].forward is not entry.forward:
        # One forward pass serves both losses, so both must be computed from the same outputs.
        fitting = [name for name, other in RETAIN_LOSSES.items() if other.forward is entry.forward]
        what = "predictions" if entry.forward is labelled_tokens else "hidden states"
        reason = f"{loss!r} is computed from {what}, and this retain loss cannot be"
        yield Problem("retain_loss", retain_loss, reason, f"use {' or '.join(map(repr, fitting))}")


def _setting_problems(loss: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    known = LOSSES[loss].settings
    for name, value in settings.items():
        if name in known:
            fix = _fix(name, value, known[name])
            if fix:
                yield Problem(f"loss_kwargs[{name!r}]", value, f"{loss!r} cannot be computed with it", fix)
        elif known:
            yield unknown_name("loss_kwargs", name, known)
        else:
            yield Problem("loss_kwargs", name, f"{loss!r} has no settings", "remove loss_kwargs")


def _fix(name: str, value: object, default: int | float) -> str | None:
    """Return what a setting must be, if its value is not that."""
    whole, positive = isinstance(default, int), name in _POSITIVE
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        in_range = value > 0 or (value == 0 and not positive)
        if in_range and (isinstance(value, int) or not whole):
            return None
    if whole:
        return "use a whole number, 0 or more"
    return f"use a {'positive value' if positive else 'value of 0 or more'}"
