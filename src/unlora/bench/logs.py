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
from unlora.errors import InputError, Problem
from unlora.files import write_text
from unlora.progress import is_quiet

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


def command_log(folder: Path, command: str, flags: Mapping[str, Any], model: ModelConfig) -> Path:
    """What an evaluating command writes of `model`; it runs in a process of its own, which leaves no GPU memory taken.

    Raises:
        InputError: the command failed; what it said is on the terminal.
    """
    settings = {**asdict(model), **flags}
    path = _place(folder, [command, settings])
    if not path.exists():
        config = path.with_suffix(".yaml")
        write_text(config, yaml.safe_dump(settings, sort_keys=False))
        argv = [sys.executable, "-m", "unlora", command, "--config", str(config), "--log", str(path)]
        # Its table would stand among what the bench prints, which may be JSON.
        if subprocess.run([*argv, *(["--quiet"] if is_quiet() else [])], stdout=subprocess.DEVNULL).returncode:
            reason, fix = f"`unlora {command}` cannot measure it", "see what it said above"
            raise InputError(Problem("model", model.model_name_or_path, reason, fix))
    return path


def _place(folder: Path, settings: Any) -> Path:
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return folder / "logs" / f"{key}.json"
