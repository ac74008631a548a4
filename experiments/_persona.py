"""Code shared by the experiments on persona: data, models and request of a seed, flags, and tables of measures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from unlora.bench.quickstart import evaluate_model, quickstart_request
from unlora.benchmarks.builtin.persona import DATA, RETRAINED_LOG, write_sets
from unlora.benchmarks.builtin.persona_models import Recipe, persona_models
from unlora.data.sources import Record
from unlora.evals import Log, summarise, write_log
from unlora.pipeline.request import Request

# Settings are tuned on seed 3 and reported on the others.
TUNING_SEED, SEEDS = 3, (0, 1, 2, 4, 5)

# The measures of a run, each with its number format.
MEASURES = {
    "updates": ".0f",
    "log10 FQ": ".2f",
    "utility kept, %": ".1f",
    "probability": ".3f",
    "probability, retrained": ".3f",
    "ROUGE-L": ".3f",
    "ROUGE-L, retrained": ".3f",
    "given away": ".1f",
    "broken": ".1f",
}


class Persona:
    """The data, the models and the request of one seed, with the settings tuned for vila and ihl.

    Args:
        folder: folder for the data and the runs.
        seed: seed of the data, the models and the training.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.sets: Mapping[str, Sequence[Record]] = write_sets(folder / DATA, seed)
        self.models = persona_models(Recipe(seed=seed))
        request = quickstart_request(self.models["original"], folder, seed, "vila", "ihl")
        # The experiments evaluate the retrained model themselves, on fewer rows.
        self.request: Request = replace(request, evaluation=replace(request.evaluation, retrained=None))


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the flag `--seeds`. Also limit torch to one thread, and disable progress bars."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds that the table averages over")
    return parser


def mean_error(values: Sequence[float]) -> str:
    """Return the mean of the values ± its standard error, or a dash for fewer than two values."""
    if len(values) < 2:
        return "-"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def compared_request(
    models: Mapping[str, Path], sets: Mapping[str, Sequence[Record]], folder: Path, seed: int, **settings: Any
) -> tuple[Request, Log]:
    """Evaluate the retrained model, and return the quickstart's request and the log of the retrained model.

    Args:
        models: folders of the "original" and the "retrained" model.
        sets: the evaluation sets by name.
        folder: folder with the data, to which the run and the log are written.
        seed: seed of the run.
        **settings: training settings that replace those of the quickstart.
    """
    log = evaluate_model(models["retrained"], sets)
    write_log(log, folder / RETRAINED_LOG)
    request = quickstart_request(models["original"], folder, seed)
    return replace(request, args=replace(request.args, disable_tqdm=True, **settings)), log


def measures_of(metrics: Mapping[str, Any], retrained_log: Log) -> dict[str, float]:
    """Return the values of `MEASURES` for a run, given its metrics and the retrained model's log."""
    unlearned, forget = metrics["unlearned"], metrics["unlearned"]["sets"]["forget"]
    retrained = summarise(retrained_log, retrained_log)["sets"]["forget"]
    values = (
        max(entry.get("step", 0) for entry in metrics["train"]),
        unlearned["log10_forget_quality"],
        100 * unlearned["model_utility"] / metrics["original"]["model_utility"],
        *(part[measure] for measure in ("probability", "rougeL_recall") for part in (forget, retrained)),
        forget["given_away"],
        forget["broken"],
    )
    return dict(zip(MEASURES, values, strict=True))


def add_measures(table: Table, name: str, found: Mapping[int, Mapping[str, float]]) -> None:
    """Print the measures of each seed, and add a row with their means ± standard errors to the table."""
    for seed, measures in found.items():
        words = ", ".join(f"{measure} {measures[measure]:{form}}" for measure, form in MEASURES.items())
        print(f"{name}, seed {seed}: {words}", flush=True)
    table.add_row(name, *(mean_error([measures[measure] for measures in found.values()]) for measure in MEASURES))


def show(table: Table) -> None:
    """Print a table at a fixed width, since it is wider than most terminals."""
    Console(width=170).print(table)
