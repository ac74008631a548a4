"""A run on disk: the name of every file in its folder, its settings, and what in it is finished.

Three models appear in the files of a run: the "original" before unlearning, the "unlearned" one, and the "retrained"
one, which never saw the forget set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from unlora.common.errors import InputError, Problem
from unlora.models.hashes import ADAPTER_WEIGHTS
from unlora.settings import ModelConfig, TextConfig

MODELS = ("original", "unlearned", "retrained")

# What `unlora unlearn` writes.
CONFIG = "config.yaml"
IMPORTANCE = "importance.safetensors"
ADAPTER = "adapter"
METRICS = "metrics.json"
SAMPLES = "samples.jsonl"
FORGOTTEN = "forgotten.json"
RECORD = "record.json"
REPORT = "report.html"
# Model -> its evaluation log.
EVALUATIONS = {model: f"eval_{model}.json" for model in MODELS}

# What later commands add: model -> its log of a benchmark with its own scoring (MUSE, lm-evaluation-harness), ...
SCORES = {model: f"scores_{model}.json" for model in MODELS}
MEMBERSHIP = "membership.json"
ATTACKS = "attacks.json"


def has_adapter(run: str | Path) -> bool:
    """Whether the run has exported its adapter."""
    return (Path(run) / ADAPTER / ADAPTER_WEIGHTS).is_file()


def is_finished(run: str | Path) -> bool:
    """Whether the run was completed: its metrics are written whole, after everything that they are made from."""
    return (Path(run) / METRICS).is_file()


def check_adapter(run: str | Path, argument: str = "RUN") -> None:
    """Raise `InputError` unless the run has exported its adapter."""
    if not has_adapter(run):
        reason, fix = "it has no exported adapter", "name the folder of an `unlora unlearn` that has finished"
        raise InputError(Problem(argument, str(run), reason, fix))


def saved_settings(run: str | Path, argument: str = "on") -> dict[str, Any]:
    """All settings of a run: one flat mapping of flags."""
    try:
        return dict(yaml.safe_load((Path(run) / CONFIG).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        reason = f"its {CONFIG} cannot be read ({error})"
        fix = "name the folder of an earlier `unlora unlearn`"
        raise InputError(Problem(argument, str(run), reason, fix)) from error


def continued_settings(run: str) -> dict[str, Any]:
    """The settings that a request on top of a run takes over: those of the model and of the text."""
    names = {*ModelConfig.__dataclass_fields__, *TextConfig.__dataclass_fields__} - {"on"}
    return {name: value for name, value in saved_settings(run).items() if name in names}


def continued_problems(model: ModelConfig) -> list[Problem]:
    """Why a request cannot continue from the run that `model.on` names: no adapter there, or one for another model."""
    if model.on is None:
        return []
    if not has_adapter(model.on):
        reason, fix = "it has no exported adapter", "name the folder of an `unlora unlearn` that has finished"
        return [Problem("on", model.on, reason, fix)]
    values = {name: getattr(model, name) for name in ("model_name_or_path", "model_revision")}
    theirs = continued_settings(model.on)
    return [
        Problem(name, value, f"the adapter in {model.on} was made for {theirs.get(name)!r}", "remove it")
        for name, value in values.items()
        if value != theirs.get(name) and not _same_folder(value, str(theirs.get(name)))
    ]


def settings_of(kind: Any, values: Mapping[str, Any]) -> Any:
    """One of the settings dataclasses, filled with those of `values` that belong to it."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(one).resolve() == Path(other).resolve()
