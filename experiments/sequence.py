"""Make three deletion requests in sequence on persona: does the first set stay forgotten, and what does it cost?

The forget set is requested in three parts, each request on top of the one before. The table shows the probability of
each part's answers after each request, and the utility. For comparison it has one request for all parts at once, and
the last exported adapter compressed to the rank of a single request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments._persona import Persona, make_parser, mean_error, show
from unlora.benchmarks.builtin.persona import MAX_NEW_TOKENS
from unlora.data import TextFormat
from unlora.data.sources import Record
from unlora.evals import evaluate, summarise
from unlora.evals.log_format import TASKS
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.request import Request
from unlora.pipeline.unlearn import unlearn
from unlora.runs.folder import ADAPTER

# Rows of the forget set by people: three, three and two of the eight.
PARTS = ((0, 24), (24, 48), (48, 64))
SETTINGS = {"ds_size": 120, "max_new_tokens": MAX_NEW_TOKENS}


def requests(persona: Persona) -> list[Request]:
    """Return a request for each part on top of the one before, the last one at a lower rank, and one for everything."""
    whole, folder = persona.request, persona.folder
    quiet = replace(whole.args, disable_tqdm=True, logging_strategy="no")
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
    """Return the mean probability of each part's answers and of the retain set's, and the utility."""
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
    """Return the rows of one seed's table."""
    persona = Persona(Path(tempfile.mkdtemp()), seed)
    sets, every = persona.sets, requests(persona)
    rows = {"original": measure(every[0], None, sets)}
    names = ("after request 1", "after request 2", "after request 3", "request 3 at rank 16", "one request for all")
    for name, request in zip(names, every, strict=True):
        result = unlearn(request, sets={})  # evaluated below, all parts at once
        rows[name] = measure(request, result.folder / ADAPTER, sets)
        if "compression" in result.metrics:
            print(f"seed {seed}: relative error of the compression {result.metrics['compression']}", flush=True)
    gold = replace(every[0].model, model_name_or_path=str(persona.models["retrained"]))
    rows["retrained"] = measure(replace(every[0], model=gold), None, sets)
    utility = rows["original"][-1]
    return {name: [*values[:-1], values[-1] / utility] for name, values in rows.items()}


def main() -> None:
    """Print the table: mean ± standard error over seeds."""
    every = [run(seed) for seed in make_parser("sequence", __doc__).parse_args().seeds]
    parts = [f"forget probability, part {number + 1}" for number in range(len(PARTS))]
    table = Table("model", *parts, "retain probability", "utility (of the original's)")
    for name in every[0]:
        table.add_row(name, *map(mean_error, zip(*(rows[name] for rows in every), strict=True)))
    show(table)


if __name__ == "__main__":
    main()
