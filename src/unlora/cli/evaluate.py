"""`unlora evaluate`: TOFU's metrics of a model, with or without an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.config import EvalConfig, ModelConfig, TextConfig
from unlora.errors import Problem, raise_if

EXAMPLE = "unlora evaluate --model_name_or_path model --adapter run/adapter --eval_data locuslab/TOFU --log eval.json"


@dataclass
class TargetConfig:
    """What to evaluate, and where the result goes."""

    adapter: str | None = field(default=None, metadata={"help": "PEFT adapter folder to load on the model."})
    log: str = field(default="", metadata={"help": "Where the result is written: a new file. Required."})

    def problems(self, model: ModelConfig) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = []
        if model.on is not None and self.adapter is not None:
            reason = "the adapter of that run is evaluated, and an exported adapter holds all before it"
            problems.append(Problem("on", model.on, reason, "name either on or adapter"))
        if not self.log:
            problems.append(required("log", self.log))
        elif Path(self.log).exists():
            problems.append(Problem("log", self.log, "it is already in use", "name a new file"))
        return problems

    def adapted(self, model: ModelConfig) -> bool:
        """Whether what is evaluated has an adapter, without which it is the original."""
        return self.adapter is not None or model.on is not None


@dataclass
class ReportedConfig(TargetConfig):
    """What to evaluate, for the report of the run that it belongs to."""

    log: str = field(
        default="",
        metadata={"help": "Where the result is written: a new file; with --on one in that run if not given."},
    )

    def log_in_run(self, model: ModelConfig, name: str) -> None:
        """Has the result written into the run that is evaluated, where its report looks for it."""
        if model.on is not None and not self.log:
            self.log = str(Path(model.on) / name)


SETTINGS = (ModelConfig, TextConfig, TargetConfig, EvalConfig)


def required(name: str, value: object) -> Problem:
    """The problem of a flag that was not given."""
    return Problem(name, value, "it is required", "name it")


def load_target(model_config: ModelConfig, target: TargetConfig) -> tuple[Any, Any]:
    """The model with its adapter, if there is one, and its tokenizer."""
    from unlora.models import load_adapter, load_model

    model, tokenizer = load_model(model_config)
    return (load_adapter(model, target.adapter) if target.adapter else model), tokenizer


def run(argv: list[str]) -> Answer:
    """Evaluates, writes the log, and shows the metrics."""
    from unlora.cli.tables import print_comparison
    from unlora.data import TextFormat
    from unlora.distributed import on_main
    from unlora.evals import read_log, summarise, write_log
    from unlora.pipeline import check_forget_quality, evaluate_shown, usable_length

    model_config, text, target, config = parse(SETTINGS, argv, "evaluate", EXAMPLE)
    missing = [] if config.eval_data else [required("eval_data", config.eval_data)]
    settings = (model_config, text, config)
    raise_if([*target.problems(model_config), *missing, *(problem for part in settings for problem in part.problems())])
    sets = config.sets()
    retrain_log = read_log(config.retrain_log, "retrain_log") if config.retrain_log else None
    if retrain_log is not None:
        check_forget_quality(sets, retrain_log, config.ds_size)
    model, tokenizer = load_target(model_config, target)
    text_format = TextFormat(tokenizer, text.prompt_format, usable_length(model, text.max_length))
    log = evaluate_shown(target.log, model, sets, text_format, config.settings())
    on_main(lambda: write_log(log, target.log))
    summary = summarise(log, retrain_log)
    return Answer(summary, lambda: print_comparison({"model": summary}), target.log)
