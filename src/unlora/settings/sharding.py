"""Check the setting `shard_base`, and the DeepSpeed configuration that it may name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.common.reading import read_json

FSDP = "fsdp"
SECTION = "zero_optimization"


def sharding_problems(shard_base: str) -> list[Problem]:
    """Check that `shard_base` is `fsdp` or the path of a usable ZeRO-3 configuration."""
    if shard_base == FSDP:
        return []
    if find_spec("deepspeed") is None and Path(shard_base).is_file():
        reason = "this is a DeepSpeed configuration, and DeepSpeed is not installed"
        return [Problem("shard_base", shard_base, reason, f"pip install 'unlora[deepspeed]', or use {FSDP!r}")]
    try:
        zero3_section(shard_base)
    except InputError as error:
        return list(error.problems)
    return []


def zero3_section(path: str) -> dict[str, Any]:
    """Return the `zero_optimization` section of a DeepSpeed configuration, without values that are "auto".

    Raises:
        InputError: the file is not a DeepSpeed configuration, its stage is not 3, or it has other sections, which
            configure training: DeepSpeed does not train here.
    """
    try:
        settings = read_json(path)
        section = settings[SECTION]
        stage = section["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"neither {FSDP!r} nor a DeepSpeed configuration ({type(error).__name__}: {error})"
        fix = f"use {FSDP!r} or a JSON file as in docs/scaling.md"
        raise InputError(Problem("shard_base", path, reason, fix)) from error
    if stage != 3:
        reason = f"ZeRO stage {stage} keeps a whole copy of the weights in every process"
        raise InputError(Problem("shard_base", path, reason, "use stage 3"))
    others = sorted(settings.keys() - {SECTION})
    if others:
        reason = f"it sets {', '.join(others)}, but here DeepSpeed only holds the base model and does not train"
        fix = f"remove everything but {SECTION}; training has its own flags"
        raise InputError(Problem("shard_base", path, reason, fix))
    return {name: value for name, value in section.items() if value != "auto"}
