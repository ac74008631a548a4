"""When unlearning stops."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlora.common.errors import Problem
from unlora.settings.checks import below, changed, not_among, not_finite

# Choice -> statistics that are compared.
STOP_STATISTICS = {"auto": ("nll", "truth_ratio"), "nll": ("nll",), "truth_ratio": ("truth_ratio",)}


@dataclass
class StoppingConfig:
    """When unlearning stops before its last epoch. Without `holdout_data` it does not."""

    holdout_data: str | None = field(
        default=None,
        metadata={"help": "Rows like the forget set's that the model never saw. Training stops when both look alike."},
    )
    holdout_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    holdout_split: str = field(default="train", metadata={"help": "Its split. Slices such as train[:40] work."})
    stop_every: int = field(default=5, metadata={"help": "Optimiser steps between two comparisons."})
    stop_statistic: str = field(
        default="auto",
        metadata={"help": "What is compared: nll, truth_ratio, or auto (both, if the rows have wrong answers)."},
    )
    stop_auc: float = field(
        default=0.5,
        metadata={"help": "Stop when a forget example is more likely than an unseen one at most this often."},
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = [
            *not_finite(self),
            *not_among(self, {"stop_statistic": tuple(STOP_STATISTICS)}),
            *below(self, {"stop_every": 1}, "the comparison would never be made"),
        ]
        if self.holdout_data is None:
            reason, fix = "there is no holdout_data to compare with", "name holdout_data, or remove it"
            problems += [Problem(name, value, reason, fix) for name, value in changed(self).items()]
        if not 0 < self.stop_auc < 1:
            reason = "it is the share of pairs in which the forget example is the more likely one"
            problems.append(Problem("stop_auc", self.stop_auc, reason, "use a value near 0.5"))
        return problems
