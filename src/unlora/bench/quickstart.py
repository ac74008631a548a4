"""The whole workflow on persona: train two models from scratch, unlearn, and evaluate all three models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unlora.benchmarks.builtin.persona import DATA, MAX_NEW_TOKENS, PERSONA, RETRAINED_LOG, persona_settings, write_sets
from unlora.benchmarks.builtin.persona_trainings import start_persona
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.common.files import check_unused
from unlora.common.locks import writing_to
from unlora.data import TextFormat
from unlora.data.sources import Record
from unlora.evals import Log, read_log, summarise, write_log
from unlora.models.load import load_model
from unlora.pipeline.evaluation import evaluate_shown
from unlora.pipeline.request import Request
from unlora.pipeline.unlearn import unlearn
from unlora.runs.folder import ADAPTER, EVALUATIONS
from unlora.settings import EvalSettings, ModelConfig


@dataclass(frozen=True)
class Report:
    """The result of the quickstart.

    Args:
        metrics: {model: metrics}, for all three models.
        answers: {model: evaluation log}.
        adapter: folder of the adapter.
    """

    metrics: dict[str, dict[str, Any]]
    answers: dict[str, Log]
    adapter: Path


def quickstart(folder: Path, seed: int = 0, say: Callable[[str], None] = print) -> Report:
    """Make a persona model forget a tenth of its people, and compare it with a model that never knew them.

    Args:
        folder: a new folder for data, adapter, logs and metrics.
        seed: seed of the generated people, of the models and of the training.
        say: called with one line of text for each step.

    Raises:
        InputError: the folder is not empty.
    """
    with writing_to(folder), _one_thread():
        check_unused(folder, "output_dir")
        return _quickstart(folder, seed, say)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, like the processes that train the models.

    A model this small gains little from more threads, and becomes much slower if they wait for each other on a busy
    machine. Besides, the result then does not depend on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quickstart(folder: Path, seed: int, say: Callable[[str], None]) -> Report:
    trainings = start_persona(Recipe(seed=seed))
    sets = write_sets(folder / DATA, seed)
    say("1/4 two models from scratch (cached afterwards): the original, and one retrained without the forget set")
    retrained = trainings.wait("retrained")["retrained"]  # it is trained on fewer rows, so it is ready first
    say("2/4 evaluation of the retrained model, the gold standard")
    retrained_log = evaluate_model(retrained, sets)
    write_log(retrained_log, folder / RETRAINED_LOG)
    request = quickstart_request(trainings.wait("original")["original"], folder, seed)
    args = request.args
    say(
        f"3/4 unlearning of {len(sets['forget'])} answers: {request.importance.init} + {args.loss}, rank {args.r}, "
        f"learning rate {args.learning_rate:g}, retain weight {args.retain_weight:g}, until the model agrees with its "
        "teacher; then evaluation of both models"
    )
    result = unlearn(request, sets)
    say("4/4 done")
    logs = {name: read_log(result.folder / EVALUATIONS[name]) for name in ("original", "unlearned")}
    return Report(
        metrics={
            "original": result.metrics["original"],
            "unlearned": result.metrics["unlearned"],
            "retrained": summarise(retrained_log, retrained_log),
        },
        answers={**logs, "retrained": retrained_log},
        adapter=result.folder / ADAPTER,
    )


def quickstart_request(model: Path, folder: Path, seed: int, init: str = "lora", loss: str = "distil") -> Request:
    """Return the request of the quickstart. Its run is written to `folder / "run"`."""
    own = {"retrained": str(folder / RETRAINED_LOG), "output_dir": str(folder / "run"), "init": init, "loss": loss}
    values = {**persona_settings(model, folder, seed), **PERSONA.tuned_for(f"{init}+{loss}"), **own}
    if init == "lora":  # a plain LoRA start has no importance that could be normalised
        del values["normalised"]
    return Request.of(values)


def evaluate_model(folder: Path, sets: Mapping[str, Sequence[Record]]) -> Log:
    """Return the log of TOFU's evaluation of a saved model."""
    model, tokenizer = load_model(ModelConfig(str(folder)))
    settings = EvalSettings(max_new_tokens=MAX_NEW_TOKENS)
    return evaluate_shown("retrained", model, sets, TextFormat(tokenizer), settings)
