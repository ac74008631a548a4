"""Check the files of a local model before any weights are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unlora.common.errors import Problem
from unlora.common.files import LFS_FIX, is_lfs_pointer
from unlora.models.hashes import ADAPTER_SETTINGS, ADAPTER_WEIGHTS

CONFIG_NAME, SAFE_WEIGHTS_NAME = "config.json", "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = f"{SAFE_WEIGHTS_NAME}.index.json"
# Extensions of pickled weights, which can run code when they are loaded.
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "if you trust whoever wrote them, load the model with transformers and save it with "
    "`model.save_pretrained(NEW_FOLDER)`, which writes safetensors"
)
_AGAIN = "copy or download it again"
_TOKENIZER_SETTINGS, _GENERATION_SETTINGS = "tokenizer_config.json", "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", _TOKENIZER_SETTINGS)


def is_adapter(folder: Path) -> bool:
    """Return whether the folder holds a PEFT adapter and not a whole model."""
    return (folder / ADAPTER_SETTINGS).is_file() and not _weight_files(folder)


def model_problems(folder: Path, argument: str) -> list[Problem]:
    """Return problems of missing files in a model's folder, and of broken weight files and settings."""
    if not (folder / CONFIG_NAME).is_file():
        reason, fix = f"the folder has no {CONFIG_NAME}", "name the folder that `save_pretrained` wrote"
        return [Problem(argument, str(folder), reason, fix)]
    if (folder / ADAPTER_SETTINGS).is_file():
        reason = "the folder holds both a whole model and an adapter, so it is ambiguous"
        return [Problem(argument, str(folder), reason, f"move {ADAPTER_SETTINGS} and its weights to another folder")]
    files = _weight_files(folder)
    if not files:
        return [_no_weights_problem(folder, argument)]
    broken = [problem for file in files for problem in _file_problems(file, argument)]
    return [*broken, *_settings_problems(folder / _GENERATION_SETTINGS, argument)]


def adapter_problems(folder: Path, argument: str) -> list[Problem]:
    """Check the weight file of an adapter."""
    if (folder / ADAPTER_WEIGHTS).is_file():
        return list(_file_problems(folder / ADAPTER_WEIGHTS, argument))
    return [_no_weights_problem(folder, argument, ADAPTER_WEIGHTS)]


def tokenizer_problems(folder: Path, argument: str) -> list[Problem]:
    """Return problems of a tokenizer's files that are git-lfs pointers, and of broken settings."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if found := [_pointer_problem(file, argument) for file in files if is_lfs_pointer(file)]:
        return found
    return _settings_problems(folder / _TOKENIZER_SETTINGS, argument)


def _settings_problems(file: Path, argument: str) -> list[Problem]:
    """Check that a settings file is a JSON object. transformers would silently ignore a broken one."""
    if not file.is_file():
        return []
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        return []
    return [Problem(argument, str(file.parent), f"{file.name} is cut off or broken: it is no JSON object", _AGAIN)]


def _weight_files(folder: Path) -> list[Path]:
    """Return the paths of a whole model's weight files, including shards in the index that do not exist."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if not index.is_file():
        return []
    try:
        return [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [index]  # `_file_problems` then reports it as broken


def _file_problems(file: Path, argument: str) -> Iterator[Problem]:
    if not file.is_file():
        yield Problem(
            argument, str(file.parent), f"its weights are in several files, and {file.name} is missing", _AGAIN
        )
    elif is_lfs_pointer(file):
        yield _pointer_problem(file, argument)
    else:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            reason = f"{file.name} is cut off or broken ({error})"
            yield Problem(argument, str(file.parent), reason, _AGAIN)


def _pointer_problem(file: Path, argument: str) -> Problem:
    return Problem(argument, str(file.parent), f"{file.name} is a git-lfs pointer in place of the file", LFS_FIX)


def _no_weights_problem(folder: Path, argument: str, wanted: str = SAFE_WEIGHTS_NAME) -> Problem:
    names = sorted(file.name for file in folder.iterdir())
    if pickled := [name for name in names if name.endswith(_PICKLED) and not name.startswith("training_args")]:
        reason = f"its weights are pickled ({pickled[0]}), and unlora reads safetensors only"
        return Problem(argument, str(folder), reason, _CONVERT)
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    there = f"; it has {', '.join(others[:3])}" if others else ""
    fix = "name the folder that `save_pretrained` wrote, with its weights"
    return Problem(argument, str(folder), f"the folder has no {wanted}{there}", fix)
