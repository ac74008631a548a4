"""Three deletion requests in sequence on persona: does the first set stay forgotten, and what does it cost?

The forget set is asked for in three parts, each request on top of the one before. Shown are the probability
of each part's answers after each request, and the utility; beside them one request for all parts at once, and the last
exported adapter compressed to the rank of a single request.
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

from unlora.bench.quickstart import quickstart_request
from unlora.benchmarks.builtin.persona import DATA, MAX_NEW_TOKENS, write_sets
from unlora.benchmarks.builtin.persona_models import Recipe, persona_models
from unlora.data import TextFormat
from unlora.data.sources import Record
from unlora.evals import evaluate, summarise
from unlora.evals.tofu import TASKS
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.request import Request
from unlora.pipeline.unlearn import unlearn
from unlora.runs.folder import ADAPTER

# Rows of the forget set by people: three, three and two of the eight.
PARTS = ((0, 24), (24, 48), (48, 64))
SETTINGS = {"ds_size": 120, "max_new_tokens": MAX_NEW_TOKENS}


def requests(seed: int, folder: Path) -> list[Request]:
    """One request for each part, each on top of the one before, and one for everything."""
    whole = quickstart_request(persona_models(Recipe(seed=seed))["original"], folder, seed)
    quiet = replace(whole.args, disable_tqdm=True, logging_strategy="no")
    whole = replace(whole, args=quiet)
    parts = []
    for number, (start, stop) in enumerate(PARTS):
        parts.append(
            replace(
                whole,
                model=replace(whole.model, on=str(folder / f"run{number - 1}") if number else None),
                data=replace(whole.data, forget_split=f"train[{start}:{stop}]"),
                args=replace(quiet, output_dir=str(folder / f"run{number}")),
            )
        )
    at_rank = replace(parts[-1], args=replace(quiet, output_dir=str(folder / "compressed"), export_rank=2 * quiet.r))
    return [*parts, at_rank, replace(whole, args=replace(quiet, output_dir=str(folder / "whole")))]


def measure(request: Request, adapter: Path | None, sets: Mapping[str, Sequence[Record]]) -> list[float]:
    """Probability of each part's answers and of the retain set's, forget quality of all parts, and utility."""
    model, tokenizer = load_model(replace(request.model, on=None))
    if adapter is not None:
        model = load_adapter(model, str(adapter))
    log = evaluate(model, sets, TextFormat(tokenizer), replace(request.evaluation, **SETTINGS))
    summary = summarise(log, None)
    forget = log[TASKS["forget"]]["avg_gt_loss"]
    likely = [np.exp(-forget[str(row)]) for row in range(len(forget))]
    parts = [float(np.mean(likely[start:stop])) for start, stop in PARTS]
    return [*parts, summary["sets"]["retain"]["probability"], summary["model_utility"]]


def run(seed: int) -> dict[str, list[float]]:
    """Rows of one seed's table."""
    folder = Path(tempfile.mkdtemp())
    sets = write_sets(folder / DATA, seed)
    every = requests(seed, folder)
    rows = {"original": measure(every[0], None, sets)}
    names = ("after request 1", "after request 2", "after request 3", "request 3 at rank 16", "one request for all")
    for name, request in zip(names, every, strict=True):
        result = unlearn(request, sets={})  # evaluated below, all parts at once
        rows[name] = measure(request, result.folder / ADAPTER, sets)
        if "compression" in result.metrics:
            print(f"seed {seed}: relative error of the compression {result.metrics['compression']}", flush=True)
    gold = replace(every[0].model, model_name_or_path=str(persona_models(Recipe(seed=seed))["retrained"]))
    rows["retrained"] = measure(replace(every[0], model=gold), None, sets)
    utility = rows["original"][-1]
    return {name: [*values[:-1], values[-1] / utility] for name, values in rows.items()}


def main() -> None:
    """Prints the table: mean ± standard error over seeds."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sequence", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 4, 5])
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    every: list[dict[str, Any]] = [run(seed) for seed in args.seeds]
    parts = [f"forget probability, part {number + 1}" for number in range(len(PARTS))]
    table = Table("model", *parts, "retain probability", "utility (of the original's)")
    for name in every[0]:
        values = np.array([rows[name] for rows in every])
        error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(values.shape[1], np.nan)
        table.add_row(name, *(f"{m:.3f} ± {e:.3f}" for m, e in zip(values.mean(0), error, strict=True)))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
