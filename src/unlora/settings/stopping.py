"""Settings of early stopping."""

from __future__ import annotations

from dataclasses import dataclass

from unlora.common.errors import Problem
from unlora.settings.checks import at_least, between, changed, choice_problems, value_problems
from unlora.settings.data import HoldoutData
from unlora.settings.setting import setting

# Choice -> statistics that are compared.
STOP_STATISTICS = {"auto": ("nll", "truth_ratio"), "nll": ("nll",), "truth_ratio": ("truth_ratio",)}
_RANGES = {
    "stop_every": at_least(1, "the comparison would never be made"),
    "stop_auc": between(0, 1, "it is the share of pairs in which the forget example is the more likely one"),
}


@dataclass
class StoppingConfig(HoldoutData):
    """Early stopping of unlearning, once the model cannot tell the forget set from `holdout_data`."""

    stop_every: int = setting(5, "Number of optimiser steps between two comparisons.")
    stop_statistic: str = setting(
        "auto", "What is compared: nll, truth_ratio, or auto (both, if the rows have wrong answers)."
    )
    stop_auc: float = setting(
        0.5, "Stop when a forget example is more likely than an unseen one in at most this share of pairs."
    )

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        problems = [
            *choice_problems(self, {"stop_statistic": tuple(STOP_STATISTICS)}),
            *value_problems(self, _RANGES),
        ]
        if self.holdout_data is None:
            reason, fix = "there is no holdout_data to compare with", "name holdout_data, or remove it"
            problems += [Problem(name, value, reason, fix) for name, value in changed(self).items()]
        return problems
