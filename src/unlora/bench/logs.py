"""Evaluation logs that cells share: of the original and of the retrained model, each made once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from unlora.config import ModelConfig
from unlora.data import TextFormat
from unlora.errors import InputError, Problem
from unlora.evals import write_log
from unlora.files import write_text
from unlora.models import load_model
from unlora.pipeline import Request, evaluate_shown, usable_length

References = dict[str, Path]


def shared_logs(model: ModelConfig, retrained: str | None, make: Callable[[ModelConfig], Path]) -> References:
    """The logs of the "original" and, where there is one, the "retrained" model.

    Args:
        model: the original.
        retrained: a log (.json), or the retrained model.
        make: the log of a model, made now unless it is there.

    Raises:
        InputError: no such log.
    """
    logs = {}
    if retrained is not None and retrained.endswith(".json"):
        if not Path(retrained).is_file():
            raise InputError(Problem("retrained", retrained, "no such file", "name a log, or the retrained model"))
        logs["retrained"] = Path(retrained)
    elif retrained is not None:
        logs["retrained"] = make(replace(model, model_name_or_path=retrained))
    return {"original": make(model), **logs}


def tofu_log(folder: Path, request: Request, model: ModelConfig) -> Path:
    """The log of `model` under the request's evaluation, named by everything that it depends on."""
    settings = [asdict(model), asdict(request.evaluation), request.data.prompt_format, request.data.max_length]
    path = _place(folder, settings)
    if not path.exists():
        loaded, tokenizer = load_model(model)
        length = usable_length(loaded, request.data.max_length)
        text_format = TextFormat(tokenizer, request.data.prompt_format, length)
        sets, settings_ = request.evaluation.sets(), request.evaluation.settings()
        write_log(evaluate_shown(model.model_name_or_path, loaded, sets, text_format, settings_), path)
    return path


def command_log(folder: Path, command: str, flags: Mapping[str, Any], model: ModelConfig) -> Path:
    """What a scoring command writes of `model`; it runs in a process of its own, as it does for cells.

    Raises:
        InputError: the command failed; what it said is on the terminal.
    """
    settings = {**asdict(model), **flags}
    path = _place(folder, [command, settings])
    if not path.exists():
        config = path.with_suffix(".yaml")
        write_text(config, yaml.safe_dump(settings, sort_keys=False))
        argv = [sys.executable, "-m", "unlora", command, "--config", str(config), "--log", str(path)]
        if subprocess.run(argv).returncode:
            reason, fix = f"`unlora {command}` cannot measure it", "see what it said above"
            raise InputError(Problem("model", model.model_name_or_path, reason, fix))
    return path


def _place(folder: Path, settings: Any) -> Path:
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "logs" / f"{key}.json"
