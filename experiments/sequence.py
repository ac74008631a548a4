"""Make three deletion requests in sequence on persona: does the first part stay forgotten, and what does it cost?

The forget set is split into three parts, and each request continues from the one before. The table shows the utility
and the probability of each part's answers after each request. It also shows, for comparison, a single request for all
parts, and the last request with its exported adapter compressed to the rank of a single request.
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

# Ranges of forget rows about three, three and two of the eight people.
PARTS = ((0, 24), (24, 48), (48, 64))
SETTINGS = {"ds_size": 120, "max_new_tokens": MAX_NEW_TOKENS}


def requests(persona: Persona) -> list[Request]:
    """Return the requests for the parts in sequence, the last one again with `export_rank`, and one for all parts."""
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
    compressed = replace(parts[-1], args=replace(quiet, output_dir=str(folder / "compressed"), export_rank=2 * quiet.r))
    return [*parts, compressed, replace(whole, args=replace(quiet, output_dir=str(folder / "whole")))]


def measure(request: Request, adapter: Path | None, sets: Mapping[str, Sequence[Record]]) -> list[float]:
    """Return the mean answer probability of each part and of the retain set, and the utility."""
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
    """Run all requests of one seed, and return the rows of its table by name."""
    persona = Persona(Path(tempfile.mkdtemp()), seed)
    sets, every = persona.sets, requests(persona)
    rows = {"original": measure(every[0], None, sets)}
    names = ("after request 1", "after request 2", "after request 3", "request 3 at rank 16", "one request for all")
    for name, request in zip(names, every, strict=True):
        result = unlearn(request, sets={})  # no evaluation here: the next line evaluates all parts
        rows[name] = measure(request, result.folder / ADAPTER, sets)
        if "compression" in result.metrics:
            print(f"seed {seed}: relative error of the compression {result.metrics['compression']}", flush=True)
    retrained = replace(every[0].model, model_name_or_path=str(persona.models["retrained"]))
    rows["retrained"] = measure(replace(every[0], model=retrained), None, sets)
    utility = rows["original"][-1]
    return {name: [*values[:-1], values[-1] / utility] for name, values in rows.items()}


def main() -> None:
    """Print the table of means ± standard errors over seeds."""
    every = [run(seed) for seed in make_parser("sequence", __doc__).parse_args().seeds]
    parts = [f"forget probability, part {number + 1}" for number in range(len(PARTS))]
    table = Table("model", *parts, "retain probability", "utility (of the original's)")
    for name in every[0]:
        table.add_row(name, *map(mean_error, zip(*(rows[name] for rows in every), strict=True)))
    show(table)


if __name__ == "__main__":
    main()
