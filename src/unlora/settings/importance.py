"""How the importance is estimated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlora.common.errors import Problem
from unlora.settings.checks import not_among, not_finite, not_positive

GRANULARITIES = ("example", "batch")
# Kind of smoothing -> default ε of the importance ratio.
SMOOTHING = {"relative": 0.1, "absolute": 1e-5, "per_token": 1e-5}


@dataclass
class ImportanceConfig:
    """How the importance is estimated."""

    init: str = field(default="vila", metadata={"help": "How the adapter is initialised: see `unlora ls`."})
    smoothing: str = field(
        default="relative",
        metadata={
            "help": "ε of F_forget / (ε + F_retain): relative to the layer's mean F_retain, absolute, or per_token "
            "(absolute, after dividing by the tokens a second time, as the authors' code does)."
        },
    )
    epsilon: float | None = field(
        default=None, metadata={"help": "ε. 0.1 for relative and 1e-5 for the others if not given."}
    )
    centred: bool | None = field(
        default=None,
        metadata={"help": "Variance (true) or mean square (false) of the gradients. The initialiser's own if unset."},
    )
    normalised: bool = field(
        default=True,
        metadata={
            "help": "Scale each layer's importance to mean row sum 1, so that A and B start about equally large."
        },
    )
    moments_per: str = field(
        default="example",
        metadata={"help": "Take gradient moments over examples, or over batches as the authors' code does."},
    )
    forget_passes: int = field(
        default=1, metadata={"help": "Passes over the forget set in newly drawn batches (with moments_per=batch)."}
    )
    probe_offset: bool = field(
        default=True,
        metadata={
            "help": "Cancel the product of the random factors. With false it disturbs the model, as in the "
            "authors' code."
        },
    )
    sigma: float = field(
        default=0.05, metadata={"help": "Standard deviation of the random factors at which gradients are taken."}
    )
    importance_seed: int = field(default=42, metadata={"help": "Seed of those factors and of the retain sample."})
    retain_samples: int | None = field(
        default=None,
        metadata={
            "help": "Retain examples in the estimate. If not given, up to 10 times the forget examples, and for vila "
            "no more than retain_convergence asks for."
        },
    )
    retain_convergence: float | None = field(
        default=0.98,
        metadata={
            "help": "Stop adding retain examples at this estimated correlation (Spearman's, of rows) with the "
            "importance from unlimited retain data. null uses them all."
        },
    )
    importance_batch_size: int | None = field(
        default=None,
        metadata={"help": "Examples in a backward pass. 16 if not given, or 4 on a CPU."},
    )
    importance_file: str | None = field(
        default=None, metadata={"help": "Read the importance from this file, made by `unlora importance`."}
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded. Whether `init` exists is checked where initialisers are known."""
        positive = ("epsilon", "sigma", "retain_samples", "importance_batch_size", "forget_passes")
        return [
            *not_among(self, {"smoothing": tuple(SMOOTHING), "moments_per": GRANULARITIES}),
            *not_finite(self),
            *not_positive(self, positive),
            *self._convergence_problems(),
            *self._batch_problems(),
            *self._file_problems(),
        ]

    def _convergence_problems(self) -> list[Problem]:
        wanted = self.retain_convergence
        if wanted is not None and not 0 < wanted < 1:
            reason = "it is the correlation that a sample can have with unlimited data"
            return [Problem("retain_convergence", wanted, reason, "use 0.98, or null")]
        if self.stops_at is None and wanted not in (None, type(self).retain_convergence):
            other = "moments_per" if self.moments_per == "batch" else "retain_samples"
            reason, fix = f"{other}={getattr(self, other)!r} uses the whole sample", f"remove it or {other}"
            return [Problem("retain_convergence", wanted, reason, fix)]
        return []

    def _batch_problems(self) -> list[Problem]:
        problems = []
        if self.forget_passes > 1 and self.moments_per == "example":
            reason = "the gradients of single examples are the same in each pass"
            problems.append(Problem("forget_passes", self.forget_passes, reason, "use 1, or moments_per='batch'"))
        if self.moments_per == "batch" and self.importance_batch_size is None:
            reason = "moments of the gradients of whole batches depend on the batch size"
            problems.append(Problem("importance_batch_size", None, reason, "name it; the authors use 4"))
        return problems

    def _file_problems(self) -> list[Problem]:
        if self.importance_file and not Path(self.importance_file).is_file():
            return [Problem("importance_file", self.importance_file, "there is no such file", "check the path")]
        return []

    def batch_size(self, device: str) -> int:
        """Examples in a backward pass on that device. A CPU is as fast on few, with a fraction of the memory."""
        return self.importance_batch_size or (4 if device == "cpu" else 16)

    @property
    def stops_at(self) -> float | None:
        """The stability of the importance at which the retain pass ends; None if the whole sample is measured."""
        return self.retain_convergence if self.moments_per == "example" and self.retain_samples is None else None

    def ratio(self) -> dict[str, Any]:
        """How the two Fisher informations become an importance: keyword arguments of `relative_importance`."""
        return {name: getattr(self, name) for name in ("smoothing", "epsilon", "centred")}
