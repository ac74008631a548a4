"""Forget and retain losses: pure functions of what the model says, and the table of them.

To add one: write the function, add its entry here, its test, and its row in docs/methods.md (a test compares them). A
program of yours adds one with `register_loss`, without a change to the package.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.losses.dual import dual_ascent
from unlora.losses.forget import (
    adjusted_distillation,
    cross_entropy_unlearning,
    gradient_ascent,
    inverted_hinge,
    logit_margin,
    saturation_importance,
    weighted_ascent,
)
from unlora.losses.hidden import hidden_error, misdirection
from unlora.losses.preference import (
    direct_preference,
    negative_preference,
    negative_preference_of_means,
    simple_negative_preference,
)
from unlora.losses.retain import kl_to_reference, nll
from unlora.models.forward import Outputs, check_layer, hidden_states, labelled_tokens

Reference = Literal["none", "logp", "logits", "hidden"]


@dataclass(frozen=True)
class Loss:
    """A loss and what the trainer must provide for it.

    Args:
        function: (what `forward` returns, **settings) -> scalar tensor.
        formula: the equation, as in the table of docs/methods.md.
        paper: where it comes from.
        reference: what it needs of the model before unlearning: nothing, the summed log-probability of each example
            ("logp", computed once), or what `forward` returns ("logits" or "hidden", computed at each step with the
            adapters off).
        retain: the retain loss that goes with a forget loss unless the user says otherwise; "none" for no retain term.
        reads: the columns of the forget set that go through the model, in this order: the answers to "forget", the
            "alternate" answers, or both.
        forward: (model, batch, **settings) -> what the model says; the same for a forget loss and its retain loss.
        check: (model, **settings) -> what is wrong with the settings for that model.
        update_weight: (λ, retain loss, **settings) -> λ after an optimiser step, if λ is not constant.
        nats: whether its value is in nats, so that blind guessing costs ln(vocabulary) more than certainty.
        mean_over: what it is the mean of: the labelled tokens, or the pairs of a batch.
    """

    function: Callable[..., Tensor]
    formula: str
    paper: str
    reference: Reference = "none"
    retain: str = "nll"
    reads: tuple[str, ...] = ("forget",)
    forward: Callable[..., Outputs] = labelled_tokens
    check: Callable[..., list[Problem]] | None = None
    update_weight: Callable[..., float] | None = None
    nats: bool = True
    mean_over: Literal["tokens", "pairs"] = "tokens"

    @property
    def settings(self) -> dict[str, Any]:
        """The loss's own settings with their defaults: those of its function, forward pass and update of λ."""
        parts = (self.forward, self.function, self.update_weight)
        return {name: value for part in parts if part for name, value in _defaults(part).items()}

    @property
    def needs_reference_pass(self) -> bool:
        """Whether the model before unlearning is run at each step."""
        return self.reference in ("logits", "hidden")

    def model_problems(self, model: nn.Module, settings: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with the loss's settings (all of them) for this model."""
        return self.check(model, **own_settings(self.check, settings)) if self.check else []


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def own_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a loss's settings that one of its functions takes."""
    return {name: settings[name] for name in inspect.signature(function).parameters if name in settings}


ASCENT = "mean_t log p(y_t)"
TOFU = "Maini et al. 2024 (arXiv 2401.06121)"
RMU = "Li et al. 2024 (arXiv 2403.03218)"
LOSSES: dict[str, Loss] = {
    "ga": Loss(gradient_ascent, ASCENT, TOFU, retain="none"),
    "gd": Loss(gradient_ascent, ASCENT, "Liu et al. 2022 (arXiv 2203.12817)"),
    "kl": Loss(gradient_ascent, ASCENT, TOFU, retain="kl"),
    "ihl": Loss(inverted_hinge, "mean_t 1 + p(y_t) − max_{v≠y_t} p(v)", "Cha et al. 2025 (arXiv 2408.06621)"),
    "npo": Loss(
        negative_preference,
        "−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i)))",
        "Zhang et al. 2024 (arXiv 2404.05868)",
        reference="logp",
        mean_over="pairs",
    ),
    "npo_mean": Loss(
        negative_preference_of_means,
        "−(2/β)·mean_i log σ(−β·(log π(y_i) − log π_ref(y_i))/n_i)",
        "Kim et al. 2025 (arXiv 2508.21300)",
        reference="logp",
        mean_over="pairs",
    ),
    "simnpo": Loss(
        simple_negative_preference,
        "−(2/β)·mean_i log σ(β·(NLL(y_i)/n_i − δ))",
        "Fan et al. 2024 (arXiv 2410.07163)",
        mean_over="pairs",
    ),
    "dpo": Loss(
        direct_preference,
        "−(2/β)·mean_i log σ(β·(r(y'_i) − r(y_i))), r = log π − log π_ref",
        "Rafailov et al. 2023 (arXiv 2305.18290)",
        reference="logp",
        reads=("forget", "alternate"),
        mean_over="pairs",
    ),
    "idk": Loss(nll, "mean_t −log p(y'_t)", TOFU, reads=("alternate",)),
    "rmu": Loss(
        misdirection,
        "mean_t (h_t − c·u/‖u‖)² at the output of decoder layer ℓ",
        RMU,
        retain="hidden_mse",
        forward=hidden_states,
        check=check_layer,
    ),
    "undial": Loss(
        adjusted_distillation,
        "mean_t −Σ_v q(v)·log p(v), q = softmax(z_ref − β·1_{y_t})",
        "Dong et al. 2025 (arXiv 2402.10052)",
        reference="logits",
    ),
    "wga": Loss(weighted_ascent, "mean_t sg(p(y_t))^β · log p(y_t)", "Wang et al. 2025 (arXiv 2502.19301)"),
    "satimp": Loss(
        saturation_importance,
        "mean_t sg(p(y_t)^β₁ · (1 − p(y_t))^β₂) · log p(y_t)",
        "Yang et al. 2025 (arXiv 2505.11953)",
    ),
    "ceu": Loss(
        cross_entropy_unlearning,
        "mean_t −Σ_v q(v)·log p(v), q = softmax(sg(z) with z_{y_t} = −∞)",
        "Yang 2025 (arXiv 2503.01224)",
        retain="none",
    ),
    "pdu": Loss(
        logit_margin,
        "mean_t (max_v z_v − mean_v z_v)²; after each update λ ← max(0, λ + η·(retain loss − ε))",
        "Entesari et al. 2025 (arXiv 2506.05314)",
        update_weight=dual_ascent,
    ),
}
RETAIN_LOSSES: dict[str, Loss] = {
    "nll": Loss(nll, "mean_t −log p(y_t)", TOFU),
    "kl": Loss(kl_to_reference, "mean_t KL(ref ‖ π)", TOFU, reference="logits"),
    "hidden_mse": Loss(
        hidden_error,
        "mean_t (h_t − h_ref,t)² at the same layer",
        RMU,
        reference="hidden",
        forward=hidden_states,
        nats=False,
    ),
}
NO_RETAIN = "none"
# Settings that divide the loss or scale all of it; the others may be 0.
POSITIVE = ("beta", "steering_coeff", "dual_step_size")


def register_loss(name: str, loss: Loss, losses: dict[str, Loss] = LOSSES) -> None:
    """Makes a loss known by a name in this process: to `UnlearnConfig`, the trainer and every command.

    Args:
        name: what `loss` (or `retain_loss`) is set to.
        loss: the loss.
        losses: the table that it joins: `LOSSES`, or `RETAIN_LOSSES` for a retain loss.

    Raises:
        InputError: the name is taken, or its own retain loss is unknown or reads something else of the model.
    """
    if name in (*losses, NO_RETAIN):
        raise InputError(Problem("name", name, "there is a loss of this name already", "choose another name"))
    if losses is LOSSES:
        if loss.retain not in (NO_RETAIN, *RETAIN_LOSSES):
            raise InputError(unknown_name("retain", loss.retain, [NO_RETAIN, *RETAIN_LOSSES]))
        raise_if(_retain_problems(name, loss, loss.retain))
    losses[name] = loss


def check_losses(loss: str, retain_loss: str | None, settings: dict[str, Any]) -> list[Problem]:
    """What is wrong with a choice of losses."""
    problems = []
    if loss not in LOSSES:
        problems.append(unknown_name("loss", loss, LOSSES))
    if retain_loss not in (None, NO_RETAIN, *RETAIN_LOSSES):
        problems.append(unknown_name("retain_loss", retain_loss, [NO_RETAIN, *RETAIN_LOSSES]))
    elif loss in LOSSES:
        problems += _retain_problems(loss, LOSSES[loss], retain_loss or LOSSES[loss].retain)
    if loss in LOSSES:
        problems += _setting_problems(loss, settings)
    return problems


def _retain_problems(loss: str, entry: Loss, retain_loss: str) -> Iterator[Problem]:
    """Why a loss and a known retain loss do not go together."""
    if retain_loss == NO_RETAIN:
        if entry.update_weight:
            reason = f"{loss!r} sets the weight of a retain loss, and there would be none"
            yield Problem("retain_loss", retain_loss, reason, f"use {entry.retain!r}")
    elif entry.retain == NO_RETAIN:
        fix = "use 'gd', which is the same with a retain term" if loss == "ga" else "leave retain_loss out"
        yield Problem("retain_loss", retain_loss, f"{loss!r} is defined without a retain term", fix)
    elif RETAIN_LOSSES[retain_loss].forward is not entry.forward:
        fitting = [name for name, other in RETAIN_LOSSES.items() if other.forward is entry.forward]
        what = "predictions" if entry.forward is labelled_tokens else "hidden states"
        fix = f"use {' or '.join(map(repr, fitting))}"
        yield Problem("retain_loss", retain_loss, f"{loss!r} is computed on {what}, which it cannot read", fix)


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
            yield Problem("loss_kwargs", name, f"{loss!r} has no settings", "leave loss_kwargs out")


def _fix(name: str, value: Any, default: Any) -> str | None:
    """What a setting must be, if its value is not that."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return None if number and isinstance(value, int) and value >= 0 else "use a whole number, 0 or more"
    fine = number and math.isfinite(value)
    if name in POSITIVE:
        return None if fine and value > 0 else "use a positive value"
    return None if fine and value >= 0 else "use a value of 0 or more"
