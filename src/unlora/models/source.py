"""Resolve `model_name_or_path`: it names a model, or an adapter together with its base model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from unlora.common.errors import InputError, Problem, from_elsewhere, raise_if
from unlora.common.progress import tell
from unlora.common.reading import read_json
from unlora.data.sources import is_hub_id
from unlora.models.folder import (
    CONFIG_NAME,
    TOKENIZER_FILES,
    adapter_problems,
    is_adapter,
    model_problems,
    tokenizer_problems,
)
from unlora.models.hashes import ADAPTER_SETTINGS
from unlora.settings import ModelConfig

_ARGUMENT = "model_name_or_path"


@dataclass(frozen=True)
class Source:
    """A base model, and the adapter on it if the user named an adapter.

    Args:
        base: the settings of the base model. The tokenizer is the adapter's if the adapter has one.
        adapter: the folder of the adapter, or None.
    """

    base: ModelConfig
    adapter: Path | None = None


def source_of(config: ModelConfig) -> Source:
    """Return the model and adapter that the settings name. An adapter on the Hub is downloaded, but nothing is loaded.

    Raises:
        InputError: there is no such model, its files are incomplete or broken, or an adapter is not LoRA or does not
            name its base.
    """
    folder = _adapter_folder(config)
    if folder is None:
        _check_model(config)
        return Source(config)
    raise_if([*adapter_problems(folder, _ARGUMENT), *tokenizer_problems(folder, _ARGUMENT)])
    with from_elsewhere(_ARGUMENT, str(folder), f"its {ADAPTER_SETTINGS} is not one of PEFT", "save the adapter again"):
        settings = dict(read_json(folder / ADAPTER_SETTINGS))
    base = settings.get("base_model_name_or_path")
    if settings.get("peft_type") != "LORA":
        reason, fix = f"it is an adapter of type {settings.get('peft_type')}", "name a LoRA adapter or a whole model"
        raise InputError(Problem(_ARGUMENT, config.model_name_or_path, reason, fix))
    if not base:
        fix = f"write the name or the path of the model under base_model_name_or_path in its {ADAPTER_SETTINGS}"
        raise InputError(Problem(_ARGUMENT, config.model_name_or_path, "the adapter does not name its base model", fix))
    tokenizer = config.tokenizer_name_or_path
    if tokenizer is None and any((folder / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = str(folder)
    base, revision = _found_base(folder, str(base)), settings.get("revision") or "main"
    named = replace(config, model_name_or_path=base, model_revision=revision, tokenizer_name_or_path=tokenizer)
    if (there := _adapter_folder(named)) is not None:
        reason = f"its base {str(there)!r} is also an adapter"
        raise InputError(
            Problem(_ARGUMENT, config.model_name_or_path, reason, "merge that adapter into its own base first")
        )
    source = Source(named, folder)
    with _naming_adapter(source, config):
        _check_model(named)
    return source


@contextmanager
def opened(config: ModelConfig) -> Iterator[Source]:
    """Yield the model and adapter that the settings name. Errors about the base of an adapter also name the adapter."""
    source = source_of(config)
    with _naming_adapter(source, config):
        yield source


@contextmanager
def _naming_adapter(source: Source, config: ModelConfig) -> Iterator[None]:
    """Make errors about the base of an adapter name the adapter, which is what the user gave."""
    base, where = source.base.model_name_or_path, f"its {ADAPTER_SETTINGS} names it under base_model_name_or_path"

    def named(one: Problem) -> Problem:
        if source.adapter is None or (one.argument, one.value) != (_ARGUMENT, base):
            return one
        reason, fix = f"its base {base!r}: {one.reason}", f"{one.fix} as the base; {where}"
        return Problem(_ARGUMENT, config.model_name_or_path, reason, fix)

    try:
        yield
    except InputError as error:
        raise InputError(*map(named, error.problems)) from error


@cache
def _found_base(adapter: Path, base: str) -> str:
    """Return the location of an adapter's base model.

    PEFT saves the path that was given when the adapter was trained, which is often relative to the working directory at
    that time. A relative path is therefore also searched for in the adapter's folder and in all folders above it.
    """
    path = Path(base).expanduser()
    if path.is_dir() or path.is_absolute():
        return str(path)
    folder = adapter.resolve()
    found = next((at / path for at in (folder, *folder.parents) if (at / path / CONFIG_NAME).is_file()), None)
    if found is None:
        return base
    tell(f"the base {base!r} of the adapter {adapter} is {found.resolve()}")
    return str(found.resolve())


def _adapter_folder(config: ModelConfig) -> Path | None:
    """Return the local folder of the adapter, or None if the settings name a whole model."""
    name = config.model_name_or_path
    if Path(name).is_dir():
        return Path(name) if is_adapter(Path(name)) else None
    if not is_hub_id(name):
        return None
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=config.model_revision) is None:
            return None
        folder = Path(
            snapshot_download(name, revision=config.model_revision, ignore_patterns=["checkpoint-*", "*.bin"])
        )
    except (OSError, ValueError):  # no such repository: loading the model reports it
        return None
    return folder if is_adapter(folder) else None


def _check_model(config: ModelConfig) -> None:
    name = config.model_name_or_path
    if Path(name).is_dir():
        raise_if([*model_problems(Path(name), _ARGUMENT), *tokenizer_problems(Path(name), _ARGUMENT)])
    elif Path(name).is_file() or not is_hub_id(name):
        what = "it is a file" if Path(name).is_file() else "there is no such folder"
        beside = [path.name for path in Path(name).parent.iterdir()] if Path(name).parent.is_dir() else []
        near = difflib.get_close_matches(Path(name).name, beside, n=1)
        meant = f"did you mean {Path(name).parent / near[0]}? Otherwise " if near and near[0] != Path(name).name else ""
        fix = f"{meant}give a model folder or a model's name on the Hub"
        raise InputError(Problem(_ARGUMENT, name, what, fix))
