"""Settings of the importance estimate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from unlora.common.errors import Problem
from unlora.settings.checks import SEED, choice_problems, positive, value_problems
from unlora.settings.names import AUTO, INITIALISERS, name_problems
from unlora.settings.setting import setting

GRANULARITIES = ("example", "batch")
# Kind of smoothing -> default ε of the importance ratio.
SMOOTHING = {"relative": 0.1, "absolute": 1e-5, "per_token": 1e-5}
# The default number of retain examples is at least this, because the ratio of a tiny sample is mostly noise.
LEAST_RETAIN = 32
_RANGES = {
    **dict.fromkeys(("epsilon", "sigma", "retain_samples", "importance_batch_size", "forget_passes"), positive()),
    "importance_seed": SEED,
}


@dataclass
class ImportanceConfig:
    """How the importance is estimated."""

    init: str = setting(
        AUTO,
        "How the adapter is initialised: see `unlora ls initialisers`. auto is lora for distil, and vila for losses "
        "without a teacher.",
    )
    smoothing: str = setting(
        "relative",
        "What ε in F_forget / (ε + F_retain) is relative to: relative (to the layer's mean F_retain), absolute, or "
        "per_token (absolute, after dividing by the tokens a second time, as the authors' code does).",
    )
    epsilon: float | None = setting(None, "ε. Defaults to 0.1 for relative and 1e-5 for the others.")
    centred: bool | None = setting(
        None,
        "Use the variance (true) or the mean square (false) of the gradients. Defaults to the initialiser's choice.",
    )
    normalised: bool = setting(
        True, "Scale each layer's importance to mean row sum 1, so that A and B start about equally large."
    )
    moments_per: str = setting(
        "example", "Take gradient moments over examples (example), or over batches as the authors' code does (batch)."
    )
    forget_passes: int = setting(1, "With moments_per=batch: passes over the forget set, each in newly drawn batches.")
    probe_offset: bool = setting(
        True, "Cancel the product of the random factors. With false it disturbs the model, as in the authors' code."
    )
    sigma: float = setting(0.05, "Standard deviation of the random factors at which gradients are taken.")
    importance_seed: int = setting(42, "Seed of the random factors and of the retain sample.")
    retain_samples: int | None = setting(
        None,
        "Number of random retain examples in the estimate. Defaults to the number of forget examples (times "
        f"forget_passes), and at least {LEAST_RETAIN}.",
    )
    importance_batch_size: int | None = setting(
        None,
        "Maximum number of examples in a backward pass. Defaults to as many as fit a GPU, or 4 on a CPU.",
    )
    importance_file: str | None = setting(None, "Read the importance from this file, made by `unlora importance`.")

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [
            *name_problems("init", self.init, INITIALISERS, [AUTO]),
            *choice_problems(self, {"smoothing": tuple(SMOOTHING), "moments_per": GRANULARITIES}),
            *value_problems(self, _RANGES),
            *self._batch_problems(),
            *self._file_problems(),
        ]

    def _batch_problems(self) -> list[Problem]:
        problems = []
        if self.forget_passes != 1 and self.moments_per == "example":
            reason = "the gradients of single examples are the same in each pass"
            problems.append(Problem("forget_passes", self.forget_passes, reason, "use 1, or moments_per='batch'"))
        if self.moments_per == "batch" and self.importance_batch_size is None:
            reason = "moments of the gradients of whole batches depend on the batch size"
            problems.append(Problem("importance_batch_size", None, reason, "set it; the authors use 4"))
        return problems

    def _file_problems(self) -> list[Problem]:
        if self.importance_file and not os.path.isfile(self.importance_file):
            return [Problem("importance_file", self.importance_file, "there is no such file", "check the path")]
        return []

    def retain_size(self, forget: int) -> int:
        """Return the number of retain examples to draw for this number of forget examples."""
        return self.retain_samples or max(self.forget_passes * forget, LEAST_RETAIN)

    def ratio(self) -> dict[str, Any]:
        """Return the keyword arguments of `relative_importance`, the ratio of the two Fisher informations."""
        return {name: getattr(self, name) for name in ("smoothing", "epsilon", "centred")}
