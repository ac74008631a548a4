"""Forget and retain losses: pure functions of `LabelledTokens`, and the table of them.

To add one: write the function, add its entry here, its test, and its row in docs/methods.md (a test compares them).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from unlora.errors import Problem, unknown_name
from unlora.losses.forget import gradient_ascent, inverted_hinge, negative_preference
from unlora.losses.retain import kl_to_reference, nll

Reference = Literal["none", "logp", "logits"]


@dataclass(frozen=True)
class Loss:
    """A loss and what the trainer must provide for it.

    Args:
        function: (LabelledTokens, **settings) -> scalar tensor.
        paper: where it comes from.
        reference: what it needs of the model before unlearning: nothing, the summed log-probability of each example
            ("logp", computed once) or the logits ("logits", computed at each step with the adapters off).
        retain: the retain loss that goes with a forget loss unless the user says otherwise; "none" for no retain term.
    """

    function: Callable[..., Tensor]
    paper: str
    reference: Reference = "none"
    retain: str = "nll"

    @property
    def settings(self) -> dict[str, Any]:
        """The loss's own settings with their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


LOSSES: dict[str, Loss] = {
    "ga": Loss(gradient_ascent, "Maini et al. 2024 (arXiv 2401.06121)", retain="none"),
    "gd": Loss(gradient_ascent, "Liu et al. 2022 (arXiv 2203.12817)"),
    "ihl": Loss(inverted_hinge, "Cha et al. 2025 (arXiv 2408.06621)"),
    "npo": Loss(negative_preference, "Zhang et al. 2024 (arXiv 2404.05868)", reference="logp"),
}
RETAIN_LOSSES: dict[str, Loss] = {
    "nll": Loss(nll, "Maini et al. 2024 (arXiv 2401.06121)"),
    "kl": Loss(kl_to_reference, "Maini et al. 2024 (arXiv 2401.06121)", reference="logits"),
}
NO_RETAIN = "none"


def check_losses(loss: str, retain_loss: str | None, settings: dict[str, Any]) -> list[Problem]:
    """What is wrong with a choice of losses."""
    problems = []
    if loss not in LOSSES:
        problems.append(unknown_name("loss", loss, LOSSES))
    if retain_loss not in (None, NO_RETAIN, *RETAIN_LOSSES):
        problems.append(unknown_name("retain_loss", retain_loss, [NO_RETAIN, *RETAIN_LOSSES]))
    if loss not in LOSSES:
        return problems
    if LOSSES[loss].retain == NO_RETAIN and retain_loss not in (None, NO_RETAIN):
        fix = "use 'gd', which is the same with a retain term" if loss == "ga" else "leave retain_loss out"
        problems.append(Problem("retain_loss", retain_loss, f"{loss!r} is defined without a retain term", fix))
    known = LOSSES[loss].settings
    problems += [_unknown_setting(loss, name, known) for name in settings if name not in known]
    problems += [
        Problem(f"loss_kwargs[{name!r}]", value, "it divides the loss", "use a positive value")
        for name, value in settings.items()
        if name == "beta" and name in known and not (isinstance(value, int | float) and value > 0)
    ]
    return problems


def _unknown_setting(loss: str, name: str, known: dict[str, Any]) -> Problem:
    if known:
        return unknown_name("loss_kwargs", name, known)
    return Problem("loss_kwargs", name, f"{loss!r} has no settings", "leave loss_kwargs out")
