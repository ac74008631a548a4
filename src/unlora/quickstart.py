"""The whole job on the built-in benchmark, from nothing: two models, unlearning, evaluation of all three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.adapter.export import check_unused
from unlora.config import DataConfig, EvalConfig, ImportanceConfig, ModelConfig
from unlora.data import TextFormat
from unlora.data.sources import Record
from unlora.evals import EvalSettings, Log, read_log, summarise, write_log
from unlora.evals.persona import generate
from unlora.evals.persona_models import Recipe, persona_models
from unlora.files import write_jsonl
from unlora.models import load_model
from unlora.pipeline import ADAPTER, Request, evaluate_shown, unlearn
from unlora.trainer import UnlearnConfig

# Longer than any answer of the benchmark, so that an answer cut off here is one that did not end.
MAX_NEW_TOKENS = 24
DATA, RETRAINED_LOG = "data", "eval_retrained.json"


@dataclass(frozen=True)
class Report:
    """What the quickstart shows: metrics of the three models, their answers, and the adapter's folder."""

    metrics: dict[str, dict[str, Any]]
    answers: dict[str, Log]
    adapter: Path


def quickstart(folder: Path, seed: int = 0, say: Callable[[str], None] = print, recipe: Recipe | None = None) -> Report:
    """Makes a persona model forget a tenth of its people, and compares it with one that never knew them.

    Args:
        folder: a new folder for data, adapter, logs and metrics.
        seed: of the people, of the models and of the training.
        say: takes a line about each step.
        recipe: of the two models; the standard one for this seed if not given.

    Raises:
        InputError: the folder is in use.
    """
    check_unused(folder, "output_dir")
    recipe = recipe or Recipe(seed=seed)
    sets = write_sets(folder / DATA, seed)
    say("1/4 two models from nothing (cached afterwards): the original, and one retrained without the forget set")
    models = persona_models(recipe)
    say("2/4 evaluation of the retrained model, the gold standard")
    retrained_log = evaluate_model(models["retrained"], sets)
    write_log(retrained_log, folder / RETRAINED_LOG)
    request = quickstart_request(models["original"], folder, seed)
    args = request.args
    say(
        f"3/4 unlearning: {request.importance.init} + {args.loss}, rank {args.r}, {args.num_train_epochs:g} epochs of "
        f"{len(sets['forget'])} answers, learning rate {args.learning_rate:g}, retain weight {args.retain_weight:g}; "
        "then evaluation before and after"
    )
    result = unlearn(request, sets)
    say("4/4 done")
    logs = {name: read_log(result.folder / f"eval_{name}.json") for name in ("before", "after")}
    return Report(
        metrics={
            "original": result.metrics["before"],
            "unlearned": result.metrics["after"],
            "retrained": summarise(retrained_log, retrained_log),
        },
        answers={"original": logs["before"], "unlearned": logs["after"], "retrained": retrained_log},
        adapter=result.folder / ADAPTER,
    )


def write_sets(folder: Path, seed: int) -> dict[str, Sequence[Record]]:
    """Writes the benchmark as a folder of `<config>.jsonl` and returns the sets to evaluate."""
    configs = generate(seed)
    for name, rows in configs.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return {"forget": configs["forget"], "retain": configs["retain"], "world_facts": configs["facts"]}


def quickstart_request(model: Path, folder: Path, seed: int) -> Request:
    """The settings, tuned on seed 3 (docs/results.md): the least training that reached every target there."""
    data = str(folder / DATA)
    return Request(
        model=ModelConfig(str(model)),
        data=DataConfig(forget_data=data, forget_name="forget", retain_data=data, retain_name="retain"),
        importance=ImportanceConfig(importance_seed=seed, normalised=False),
        evaluation=EvalConfig(
            eval_data=data,
            eval_forget_name="forget",
            eval_retain_name="retain",
            eval_real_authors_name="none",
            eval_world_facts_name="facts",
            retrain_log=str(folder / RETRAINED_LOG),
            max_new_tokens=MAX_NEW_TOKENS,
        ),
        args=UnlearnConfig(
            output_dir=str(folder / "run"),
            loss="ihl",
            learning_rate=6e-4,
            retain_weight=1.0,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=1,
            num_train_epochs=20,
            warmup_steps=0.1,
            logging_steps=20,
            save_strategy="no",
            seed=seed,
        ),
    )


def evaluate_model(folder: Path, sets: Mapping[str, Sequence[Record]]) -> Log:
    """TOFU's evaluation of a saved model."""
    model, tokenizer = load_model(ModelConfig(str(folder)))
    settings = EvalSettings(max_new_tokens=MAX_NEW_TOKENS)
    return evaluate_shown("retrained", model, sets, TextFormat(tokenizer), settings)
