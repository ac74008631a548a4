"""Measure how well estimators of row importance agree on persona, and how many retain examples VILA's needs.

The agreement of two estimates is Spearman's rank correlation of the row importances of a layer, averaged over layers.
The tables show its mean and standard error over seeds. Each seed has its own people, model, retain sample and random
LoRA factors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from experiments._persona import Persona, make_parser, mean_error, show
from experiments.ablation import METHODS
from unlora.importance import INITIALISERS
from unlora.importance.sampling import retain_sample
from unlora.pipeline.importance import measurement_for
from unlora.pipeline.prepare import prepare
from unlora.settings import ImportanceConfig

# Normalised variants are left out: normalising does not change the ranks of the rows.
ESTIMATORS = [name for name, settings in METHODS.items() if settings.get("normalised") is False]
# Retain examples per forget example.
SHARES = (1, 2, 5, 9)
# Rank of the random factors in the last column; the other columns use 8.
RANK = 64


class Estimates(Persona):
    """Row importances of one seed's persona model."""

    def __init__(self, seed: int) -> None:
        super().__init__(Path(tempfile.mkdtemp()), seed)
        self.job = prepare(self.request)

    def rows(self, share: int = SHARES[-1], seed: int = 0, r: int = 8, **settings: Any) -> dict[str, Tensor]:
        """Estimate the row importances from `share` retain examples per forget example.

        `seed` determines the retain sample and the random factors, which have rank `r`.
        """
        config = ImportanceConfig(**{"importance_seed": seed, **settings})
        request = replace(self.request, importance=config, args=replace(self.request.args, r=r))
        retain = retain_sample(self.job.retain, share * len(self.job.forget), seed)
        measurement = measurement_for(replace(self.job, request=request), retain)
        importance = INITIALISERS[config.init].row_importance(measurement)
        assert importance is not None
        return importance


def agreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return Spearman's correlation of two estimates of row importance, averaged over layers."""
    return float(np.mean([spearmanr(first[name], second[name]).statistic for name in first]))


def between_estimators(seeds: Sequence[int]) -> Table:
    """Compare all pairs of estimators, on the same retain sample and random factors."""
    estimates = [{name: Estimates(seed).rows(seed=seed, **METHODS[name]) for name in ESTIMATORS} for seed in seeds]
    table = Table("estimator", *ESTIMATORS, title="agreement of estimators")
    for one in ESTIMATORS:
        pairs = ([agreement(known[one], known[other]) for known in estimates] for other in ESTIMATORS)
        table.add_row(one, *(mean_error(values) for values in pairs))
    return table


def of_samples(seeds: Sequence[int]) -> Table:
    """Compare estimates from fewer retain examples, or with other random factors, with the full estimate."""
    known = {seed: Estimates(seed) for seed in seeds}
    table = Table("estimator", *(f"{share}×" for share in SHARES[:-1]), "other factors", f"rank {RANK}")
    table.title = f"agreement with the estimate from {SHARES[-1]}× retain examples"
    for name in ("vila", "vila absolute", "fila"):
        full = {seed: known[seed].rows(seed=seed, **METHODS[name]) for seed in seeds}
        changes: list[dict[str, Any]] = [{"share": share} for share in SHARES[:-1]]
        if METHODS[name]["init"] == "vila":
            changes += [{"seed": 1000}, {"r": RANK}]
        cells = [
            mean_error([agreement(full[s], known[s].rows(**{"seed": s, **change, **METHODS[name]})) for s in seeds])
            for change in changes
        ]
        table.add_row(name, *cells, *["-"] * (len(SHARES) + 1 - len(cells)))
    return table


def main() -> None:
    """Print both tables."""
    seeds = make_parser("agreement", __doc__).parse_args().seeds
    show(between_estimators(seeds))
    show(of_samples(seeds))


if __name__ == "__main__":
    main()
