"""How far estimators of row importance agree on persona, and how many retain examples VILA's needs.

Agreement of two estimates is Spearman's rank correlation of the row importances of a layer, averaged over layers; mean
and standard error over seeds (each with its own people, model, retain sample and random factors).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from experiments.ablation import METHODS
from unlora.bench.quickstart import quickstart_request
from unlora.benchmarks.builtin.persona import write_sets
from unlora.benchmarks.builtin.persona_models import Recipe, persona_models
from unlora.importance import INITIALISERS
from unlora.pipeline.importance import measurement_for, retain_sample
from unlora.pipeline.prepare import prepare
from unlora.settings import ImportanceConfig

# Normalising changes no ranks.
ESTIMATORS = [name for name, settings in METHODS.items() if settings.get("normalised") is False]
SHARES = (1, 2, 5, 9)
RANK = 64


class Estimates:
    """Row importances of one seed's persona model."""

    def __init__(self, seed: int) -> None:
        folder = Path(tempfile.mkdtemp())
        write_sets(folder / "data", seed)
        self.request = quickstart_request(persona_models(Recipe(seed=seed))["original"], folder, seed)
        self.job = prepare(self.request)

    def rows(self, share: int = SHARES[-1], seed: int = 0, r: int = 8, **settings: Any) -> dict[str, Tensor]:
        """The estimate from `share` times as many retain as forget examples; `seed` draws them and the factors."""
        config = ImportanceConfig(**{"importance_seed": seed, "retain_convergence": None, **settings})
        request = replace(self.request, importance=config, args=replace(self.request.args, r=r))
        retain = retain_sample(self.job.retain, share * len(self.job.forget), seed)
        measurement = measurement_for(replace(self.job, request=request), retain)
        importance = INITIALISERS[config.init].row_importance(measurement)
        assert importance is not None
        return importance


def agreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Spearman's correlation of the rows, averaged over layers."""
    return float(np.mean([spearmanr(first[name], second[name]).statistic for name in first]))


def shown(values: Sequence[float]) -> str:
    """Mean ± standard error."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def between_estimators(seeds: Sequence[int]) -> Table:
    """Each estimator against each, on the same sample and factors."""
    estimates = [{name: Estimates(seed).rows(seed=seed, **METHODS[name]) for name in ESTIMATORS} for seed in seeds]
    table = Table("estimator", *ESTIMATORS, title="agreement of estimators")
    for one in ESTIMATORS:
        pairs = ([agreement(known[one], known[other]) for known in estimates] for other in ESTIMATORS)
        table.add_row(one, *(shown(values) for values in pairs))
    return table


def of_samples(seeds: Sequence[int]) -> Table:
    """Estimates from fewer retain examples, and of other factors, against the one from all of them."""
    known = {seed: Estimates(seed) for seed in seeds}
    table = Table("estimator", *(f"{share}×" for share in SHARES[:-1]), "other factors", f"rank {RANK}")
    table.title = f"agreement with the estimate from {SHARES[-1]}× retain examples"
    for name in ("vila", "vila absolute", "fila"):
        full = {seed: known[seed].rows(seed=seed, **METHODS[name]) for seed in seeds}
        changes: list[dict[str, Any]] = [{"share": share} for share in SHARES[:-1]]
        if METHODS[name]["init"] == "vila":
            changes += [{"seed": 1000}, {"r": RANK}]
        cells = [
            shown([agreement(full[s], known[s].rows(**{"seed": s, **change, **METHODS[name]})) for s in seeds])
            for change in changes
        ]
        table.add_row(name, *cells, *["-"] * (len(SHARES) + 1 - len(cells)))
    return table


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.agreement", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 4, 5])
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for table in (between_estimators, of_samples):
        Console(width=170).print(table(args.seeds))


if __name__ == "__main__":
    main()
