"""The losses by name, the registration of further ones, and checks of a choice of losses and settings.

To add a loss to the package, write its function and its `Loss` in a module of this package, and add its name to
`unlora.settings.names`, a test, and a row to docs/methods.md (a test compares them). Outside the package, add one with
`register_loss` (docs/how-to/own-loss.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.common.plugins import register
from unlora.losses.interface import Loss
from unlora.models.forward import HiddenStates, LabelledTokens, hidden_states, labelled_tokens
from unlora.settings import names
from unlora.settings.names import NO_RETAIN, Table, loss_problems

LOSSES: Table[Loss] = names.LOSSES
RETAIN_LOSSES: Table[Loss] = names.RETAIN_LOSSES
# {forward pass: the names of the tensors that a loss can take from its outputs}.
_TENSORS = {
    labelled_tokens: [*(part.name for part in fields(LabelledTokens)), "logp", "counts", "example_logp"],
    hidden_states: [part.name for part in fields(HiddenStates)],
}
# Tensors that are computed for the forget set only.
_OF_FORGET_SET = ("ref_logp", "lesson")
# Settings that must be positive, because the loss is scaled or divided by them. All others may be 0.
_POSITIVE = ("beta", "steering_coeff", "dual_step_size", "temperature")


def register_loss(name: str, loss: Loss, losses: Table[Loss] = LOSSES) -> None:
    """Register a loss under a name, for `UnlearnConfig`, the trainer and all commands in this process.

    Args:
        name: the value of `loss` (or `retain_loss`) that selects it.
        loss: the loss.
        losses: the table to add it to: `LOSSES`, or `RETAIN_LOSSES` for a retain loss.

    Raises:
        InputError: the name is taken, the function has an argument that is no tensor of the forward pass, or the
            default retain loss is unknown or has another forward pass.
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
    """Yield a problem for each argument of the function that the trainer cannot provide."""
    known = _TENSORS.get(loss.forward)
    if known is None:  # a forward pass of the user's own
        return
    known = [name for name in known if of_forget_set or name not in _OF_FORGET_SET]
    for name in loss.inputs:
        if name not in known:
            yield unknown_name(f"argument of {loss.function.__name__}", name, known)


def check_losses(loss: str, retain_loss: str | None, settings: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of a combination of losses, and of the settings of the forget loss.

    Unknown names are not reported here, but by `unlora.settings.names.loss_problems`, which does not import torch.
    """
    if loss not in LOSSES:
        return []
    problems = [*_setting_problems(loss, settings)]
    if loss_problems(loss, retain_loss):
        return problems
    return [*_retain_problems(loss, LOSSES[loss], retain_loss or LOSSES[loss].retain), *problems]


def _retain_problems(loss: str, entry: Loss, retain_loss: str) -> Iterator[Problem]:
    """Yield the problems of combining a forget loss with a known retain loss."""
    if retain_loss == NO_RETAIN:
        if entry.update_weight:
            reason = f"{loss!r} adjusts the weight of a retain loss, and there would be none"
            yield Problem("retain_loss", retain_loss, reason, f"use {entry.retain!r}")
    elif entry.retain == NO_RETAIN:
        fix = "use 'gd', which is 'ga' with a retain term" if loss == "ga" else "remove retain_loss"
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
    """Return the fix for an invalid value of a setting, or None if the value is valid."""
    whole, positive = isinstance(default, int), name in _POSITIVE
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        in_range = value > 0 or (value == 0 and not positive)
        if in_range and (isinstance(value, int) or not whole):
            return None
    if whole:
        return "use a whole number, 0 or more"
    return f"use a {'positive value' if positive else 'value of 0 or more'}"
