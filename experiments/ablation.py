"""Compare initialisers and estimators on persona: forget quality and utility, mean and standard error over seeds.

For each initialiser and loss, the learning rate and the retain weight are chosen from one small grid on the tuning
seed, in two ways: by the best forget quality overall, and by the best forget quality among the settings that keep a
given share of the utility. Both choices are then run on the other seeds. Finished runs are saved in OUT/cells.jsonl,
one per line, and are not repeated.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.table import Table
from transformers import set_seed

from experiments._persona import TUNING_SEED, Persona, make_parser, mean_error, show
from unlora import DivergenceError, UnlearnTrainer, attach_adapters
from unlora.benchmarks.builtin.persona import MAX_NEW_TOKENS
from unlora.common.files import write_jsonl
from unlora.data import TextFormat
from unlora.evals import Log, evaluate, read_log, summarise, write_log
from unlora.models.load import load_model
from unlora.pipeline.importance import importance_for
from unlora.pipeline.job import Job
from unlora.pipeline.prepare import prepare
from unlora.pipeline.request import Request
from unlora.settings import EvalSettings, ImportanceConfig, ModelConfig

AUTHORS = {"moments_per": "batch", "importance_batch_size": 4, "forget_passes": 10, "smoothing": "per_token"}
# Retain examples of the methods that do not set their own number: all 576 of persona.
RETAINED = 576
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
}
RATES = (1e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3)
GRID = tuple(itertools.product(RATES, (1.0, 3.0)))
EVALUATION = EvalSettings(ds_size=120, max_new_tokens=MAX_NEW_TOKENS)
# Results of a run, as columns of the table.
COLUMNS = ("log10_forget_quality", "utility", "forget_probability", "retain_probability")


@dataclass(frozen=True)
class Cell:
    """Method, settings and seed of one run."""

    method: str
    loss: str
    learning_rate: float
    retain_weight: float
    seed: int


class Bench(Persona):
    """Persona of one seed with the logs of its original and retrained model, on which cells are run."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.original, self.retrained = (self._log(kind, model) for kind, model in self.models.items())

    def _log(self, kind: str, model: Path) -> Log:
        path = self.folder / f"eval_{kind}.json"
        if not path.exists():
            loaded, tokenizer = load_model(ModelConfig(str(model)))
            write_log(evaluate(loaded, self.sets, TextFormat(tokenizer), EVALUATION), path)
        return read_log(path)

    def attach(self, cell: Cell, request: Request, job: Job) -> PeftModel:
        """Attach the adapter and its offset, initialised by the cell's method."""
        settings = {"importance_seed": self.seed, "retain_samples": RETAINED, **METHODS[cell.method]}
        # All cells of a method share this folder, and so the importance that is saved in it.
        args = replace(request.args, output_dir=str(self.folder / cell.method))
        request = replace(request, importance=ImportanceConfig(**settings))
        importance = importance_for(replace(job, request=replace(request, args=args)))
        set_seed(self.seed)
        return attach_adapters(job.model, request.args, importance)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Unlearn and evaluate. If the training diverges, the result is only {"diverged": True}."""
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
        unlearned = summarise(evaluate(model, self.sets, job.text_format, EVALUATION), self.retrained)
        original = summarise(self.original, self.retrained)
        return {
            "log10_forget_quality": unlearned["log10_forget_quality"],
            "utility": unlearned["model_utility"] / original["model_utility"],
            "forget_probability": unlearned["sets"]["forget"]["probability"],
            "retain_probability": unlearned["sets"]["retain"]["probability"],
        }


class Results:
    """The results of finished cells, saved on disk.

    Args:
        folder: folder for the results and the files of each seed.
        bench: class that runs a cell without a result.
    """

    def __init__(self, folder: Path, bench: type[Bench] = Bench) -> None:
        self.folder, self.path, self.bench = folder, folder / "cells.jsonl", bench
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.values = {Cell(**json.loads(line)["cell"]): json.loads(line)["result"] for line in lines}

    def get(self, cell: Cell) -> dict[str, Any]:
        """Return the result of a cell, running it first if needed."""
        if cell not in self.values:
            self.values[cell] = self.bench(self.folder / f"seed-{cell.seed}", cell.seed).run(cell)
            write_jsonl(self.path, [{"cell": asdict(cell), "result": value} for cell, value in self.values.items()])
            print(cell, self.values[cell], flush=True)
        return self.values[cell]


def chosen(results: Results, method: str, loss: str, seed: int, least_utility: float) -> Cell | None:
    """Return the cell of `seed` with the best forget quality among those of at least `least_utility`, if any."""
    cells = {cell: results.get(cell) for cell in (Cell(method, loss, *setting, seed) for setting in GRID)}
    fit = [cell for cell, value in cells.items() if value.get("utility", -1.0) >= least_utility]
    return max(fit, key=lambda cell: cells[cell]["log10_forget_quality"], default=None)


def rows(
    results: Results, methods: Sequence[str], losses: Sequence[str], tuning: int, seeds: Sequence[int], share: float
) -> Iterator[dict[str, Any]]:
    """Yield a table row for each loss, method and utility constraint (none, or at least `share`)."""
    for loss, method in itertools.product(losses, methods):
        for least_utility in (0.0, share):
            cell = chosen(results, method, loss, tuning, least_utility)
            if cell is not None:
                values = [results.get(replace(cell, seed=seed)) for seed in seeds]
                yield {"cell": cell, "least_utility": least_utility, "values": [v for v in values if "utility" in v]}


def means(values: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the mean ± standard error of each column."""
    return [mean_error([value[column] for value in values]) for column in COLUMNS]


def main() -> None:
    """Run the missing cells, and print the table."""
    parser = make_parser("ablation", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--losses", nargs="+", default=["ihl", "npo", "gd"])
    parser.add_argument("--tuning_seed", type=int, default=TUNING_SEED)
    parser.add_argument("--share", type=float, default=0.98, help="minimum utility of the second choice (original: 1)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table("loss", "init", "utility asked", "learning rate", "λ", "seeds", *COLUMNS)
    for row in rows(Results(args.out), args.methods, args.losses, args.tuning_seed, args.seeds, args.share):
        cell, values = row["cell"], row["values"]
        table.add_row(
            cell.loss,
            cell.method,
            f"{row['least_utility']:g}",
            f"{cell.learning_rate:g}{' (edge)' if cell.learning_rate in (RATES[0], RATES[-1]) else ''}",
            f"{cell.retain_weight:g}",
            str(len(values)),
            *means(values),
        )
    show(table)


if __name__ == "__main__":
    main()
