"""Initialisers and estimators compared on persona: forget quality and utility, mean and standard error over seeds.

For each initialiser and loss, learning rate and retain weight are chosen on the tuning seed, over one small grid: once
for the best forget quality, once for the best forget quality among settings that keep a given share of the utility.
Both choices are then run on the other seeds. Every finished run is a line of OUT/cells.jsonl, and is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from unlora import DivergenceError, UnlearnTrainer, attach_adapters
from unlora.bench.quickstart import quickstart_request
from unlora.benchmarks.builtin.persona import MAX_NEW_TOKENS, write_sets
from unlora.benchmarks.builtin.persona_models import Recipe, persona_models
from unlora.common.files import write_jsonl
from unlora.data.sources import Record
from unlora.evals import Log, evaluate, read_log, summarise, write_log
from unlora.pipeline.importance import importance_for
from unlora.pipeline.job import Job
from unlora.pipeline.prepare import prepare
from unlora.pipeline.request import Request
from unlora.settings import EvalSettings, ImportanceConfig

AUTHORS = {"moments_per": "batch", "importance_batch_size": 4, "forget_passes": 10, "smoothing": "per_token"}
PLAIN = {"init": "vila", "normalised": False}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"init": "lora"},
    "pissa": {"init": "pissa"},
    "fila": {"init": "fila", "normalised": False},
    "fila absolute": {"init": "fila", "normalised": False, "smoothing": "absolute"},
    "vila": PLAIN,
    "vila absolute": {**PLAIN, "smoothing": "absolute"},
    "vila per token": {**PLAIN, "smoothing": "per_token"},
    "vila not centred": {**PLAIN, "centred": False},
    "vila batches": {**PLAIN, **AUTHORS, "smoothing": "relative"},
    "vila authors": {**PLAIN, **AUTHORS, "probe_offset": False},
    "vila normalised": {"init": "vila"},
    "vila absolute normalised": {"init": "vila", "smoothing": "absolute"},
    "vila normalised, 1x retain": {"init": "vila", "retain_samples": 64},
    "vila normalised, converging": {"init": "vila", "retain_convergence": 0.98},
}
RATES = (1e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3)
GRID = tuple(itertools.product(RATES, (1.0, 3.0)))
EVALUATION = EvalSettings(ds_size=120, max_new_tokens=MAX_NEW_TOKENS)


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    loss: str
    learning_rate: float
    retain_weight: float
    seed: int


class Bench:
    """The models, sets and logs of one seed.

    Args:
        folder: where they are kept.
        seed: of people, models and training.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.sets: Mapping[str, Sequence[Record]] = write_sets(folder / "data", seed)
        models = persona_models(Recipe(seed=seed))
        self.request = quickstart_request(models["original"], folder, seed)
        self.before, self.retrained = (self._log(kind, folder) for kind, folder in models.items())

    def _log(self, kind: str, model: Path) -> Log:
        path = self.folder / f"eval_{kind}.json"
        if not path.exists():
            job = prepare(replace(self.request, model=replace(self.request.model, model_name_or_path=str(model))))
            write_log(evaluate(job.model, self.sets, job.text_format, EVALUATION), path)
        return read_log(path)

    def attach(self, cell: Cell, request: Request, job: Job) -> PeftModel:
        """The model with the start that the cell's method gives it."""
        settings = {"importance_seed": self.seed, "retain_convergence": None, **METHODS[cell.method]}
        config = ImportanceConfig(**settings)
        request = replace(request, importance=config)
        args = replace(
            request.args, output_dir=str(self.folder / cell.method)
        )  # one importance for all cells of a method
        importance = importance_for(replace(job, request=replace(request, args=args)))
        set_seed(self.seed)
        return attach_adapters(job.model, request.args, importance)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Unlearns and evaluates."""
        args = replace(
            self.request.args,
            output_dir=tempfile.mkdtemp(),
            loss=cell.loss,
            learning_rate=cell.learning_rate,
            retain_weight=cell.retain_weight,
            disable_tqdm=True,
            logging_strategy="no",
        )
        request = replace(self.request, args=args)
        job = prepare(request)
        model = self.attach(cell, request, job)
        trainer = UnlearnTrainer(model, args, job.forget, job.retain, job.text_format.tokenizer)
        try:
            trainer.train()
        except DivergenceError:
            return {"diverged": True}
        after = summarise(evaluate(model, self.sets, job.text_format, EVALUATION), self.retrained)
        before = summarise(self.before, self.retrained)
        return {
            "log10_forget_quality": after["log10_forget_quality"],
            "utility": after["model_utility"] / before["model_utility"],
            "forget_probability": after["sets"]["forget"]["probability"],
            "retain_probability": after["sets"]["retain"]["probability"],
        }


class Results:
    """The finished cells, on disk."""

    def __init__(self, folder: Path, bench: type[Bench] = Bench) -> None:
        self.folder, self.path, self.bench = folder, folder / "cells.jsonl", bench
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.values = {Cell(**json.loads(line)["cell"]): json.loads(line)["result"] for line in lines}

    def get(self, cell: Cell) -> dict[str, Any]:
        """The result, run now if need be."""
        if cell not in self.values:
            self.values[cell] = self.bench(self.folder / f"seed-{cell.seed}", cell.seed).run(cell)
            write_jsonl(self.path, [{"cell": asdict(cell), "result": value} for cell, value in self.values.items()])
            print(cell, self.values[cell], flush=True)
        return self.values[cell]


def chosen(results: Results, method: str, loss: str, seed: int, least_utility: float) -> Cell | None:
    """The cell of the grid with the best forget quality on the tuning seed that keeps `least_utility`, if any."""
    cells = {cell: results.get(cell) for cell in (Cell(method, loss, *setting, seed) for setting in GRID)}
    fit = [cell for cell, value in cells.items() if value.get("utility", -1.0) >= least_utility]
    return max(fit, key=lambda cell: cells[cell]["log10_forget_quality"], default=None)


def rows(
    results: Results, methods: Sequence[str], losses: Sequence[str], tuning: int, seeds: Sequence[int], share: float
) -> Iterator[dict[str, Any]]:
    """One row for each method, loss and choice."""
    for loss, method in itertools.product(losses, methods):
        for least_utility in (0.0, share):
            cell = chosen(results, method, loss, tuning, least_utility)
            if cell is not None:
                values = [results.get(replace(cell, seed=seed)) for seed in seeds]
                yield {"cell": cell, "least_utility": least_utility, "values": [v for v in values if "utility" in v]}


def mean_error(values: Sequence[Mapping[str, float]], key: str) -> str:
    """Mean ± standard error."""
    numbers = np.array([value[key] for value in values])
    if not len(numbers):
        return "-"
    return f"{numbers.mean():.3f} ± {numbers.std(ddof=1) / len(numbers) ** 0.5:.3f}" if len(numbers) > 1 else "-"


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ablation", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--losses", nargs="+", default=["ihl", "npo", "gd"])
    parser.add_argument("--tuning_seed", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 4, 5])
    parser.add_argument("--share", type=float, default=0.98, help="of the utility that the second choice keeps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    columns = ("log10_forget_quality", "utility", "forget_probability", "retain_probability")
    table = Table("loss", "init", "utility asked", "learning rate", "λ", "seeds", *columns)
    for row in rows(Results(args.out), args.methods, args.losses, args.tuning_seed, args.seeds, args.share):
        cell, values = row["cell"], row["values"]
        table.add_row(
            cell.loss,
            cell.method,
            f"{row['least_utility']:g}",
            f"{cell.learning_rate:g}{' (edge)' if cell.learning_rate in (RATES[0], RATES[-1]) else ''}",
            f"{cell.retain_weight:g}",
            str(len(values)),
            *(mean_error(values, column) for column in columns),
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
