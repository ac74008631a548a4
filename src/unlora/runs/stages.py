"""The finished stages of a folder, and the inputs that they were made from.

A folder that is written to in several stages has a file stages.json: {"settings", "contents", "stages"}. The first two
describe the inputs of all stages: the settings that can change a result, and the hashes of the model and the data.
"stages" has the hash of each finished stage's output. A resumed run reuses a stage if its output is unchanged. If a
setting or an input has changed, the run is refused before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.common.distributed import is_main
from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.files import check_unused, in_use, remove_leftovers, write_json
from unlora.common.locks import check_free
from unlora.common.reading import read_json
from unlora.models.hashes import file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STAGES = "stages.json"
# Settings that do not change results: paths, logging, and how often something is saved.
_NEUTRAL = {
    *("output_dir", "resume_from_checkpoint", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
    *("trackio_bucket_id", "trackio_static_space_id", "log_level", "log_level_replica", "log_on_each_node"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "push_to_hub"),
    *("enable_jit_checkpoint", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
    *("hub_revision", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_timeout", "local_rank", "do_train"),
    *("do_eval", "do_predict", "trust_remote_code"),
}
# Settings that name a model or data. The contents are compared instead, because the files may have been moved.
_NAMES = {
    *("model_name_or_path", "model_revision", "on", "original_log", "retrained", "importance_file", "eval_data"),
    *(f"{name}_{part}" for name in ("forget", "retain", "holdout", "train") for part in ("data", "name", "split")),
    *(f"eval_{name}_name" for name in ("forget", "retain", "real_authors", "world_facts", "holdout")),
    "use_cpu",
}


class Stages:
    """The finished stages of a folder. Only the main process may use it, while it holds the folder's lock.

    Args:
        folder: the folder.
        settings: all settings by name. Those that cannot change a result are left out.
        contents: {argument: hash or other JSON value that identifies its content}.
        resume: the setting `resume_from_checkpoint`.

    Raises:
        InputError: the folder is in use, or was started with other settings or contents.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], contents: Mapping[str, Any], resume: str | bool | None
    ) -> None:
        self.folder = folder
        self.key = {"settings": _relevant(settings), "contents": _plain(contents)}
        _check_folder(folder, settings, resume)
        stored = _read(folder)
        if stored is not None:
            raise_if(_different_contents(stored["contents"], self.key["contents"], settings, folder))
        self._finished: dict[str, str] = {} if stored is None else stored["stages"]

    def start(self) -> None:
        """Write settings and contents, and delete the unfinished files of a killed process."""
        remove_leftovers(self.folder)
        self._write()

    def is_finished(self, name: str) -> bool:
        """Return whether the stage that writes the file or folder `name` is finished and its output unchanged."""
        path = self.folder / name
        return path.exists() and self._finished.get(name) == _sha256(path)

    def are_finished(self, last: str) -> bool:
        """Return whether the stage that writes `last` is finished and the output of every finished stage unchanged."""
        return last in self._finished and all(map(self.is_finished, self._finished))

    def finish(self, *names: str) -> None:
        """Mark a stage as finished, whose output is the files or folders `names`."""
        self._finished |= {name: _sha256(self.folder / name) for name in names}
        self._write()

    def _write(self) -> None:
        write_json(self.folder / STAGES, {**self.key, "stages": self._finished})


def check_start(folder: Path, settings: Mapping[str, Any], resume: str | bool | None) -> None:
    """Check, before anything is loaded, that a run can be started or resumed in this folder.

    Args:
        folder: the folder of the run.
        settings: all its settings by name.
        resume: the setting `resume_from_checkpoint`.

    Raises:
        InputError: the folder is in use, another process is writing to it, it was started with other settings, or the
            checkpoint is not in it.
    """
    if is_main():  # the other processes would find the lock of the main one
        check_free(folder)
    _check_folder(folder, settings, resume)


def _check_folder(folder: Path, settings: Mapping[str, Any], resume: str | bool | None) -> None:
    choice = str(resume or "false")
    if choice.lower() == "false":
        check_unused(folder, "output_dir")
        return
    if choice.lower() != "true" and Path(choice).resolve().parent != folder.resolve():
        reason, fix = f"it is not in {folder}", "use true for the last checkpoint there, or name a checkpoint there"
        raise InputError(Problem("resume_from_checkpoint", choice, reason, fix))
    stored = _read(folder)
    if stored is not None:
        raise_if(_different_settings(stored["settings"], settings, folder))
    elif in_use(folder):
        reason = f"it has no {STAGES}, so it is unknown what its files were made from"
        raise InputError(Problem("output_dir", str(folder), reason, "name a new folder"))


def _different_settings(old: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> list[Problem]:
    new, fix = _relevant(settings), "resume it with that value, or name a new folder"
    names = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
    values = {name: repr(old[name]) if name in old else "the default" for name in names}
    return [
        Problem(name, settings.get(name), f"the run in {folder} was started with {values[name]}", fix) for name in names
    ]


def _different_contents(
    old: Mapping[str, Any], new: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
) -> list[Problem]:
    names = [name for name in dict.fromkeys([*new, *old]) if old.get(name) != new.get(name)]
    reason = f"its content is not the one that the run in {folder} was started with"
    fix = "restore the earlier content, or name a new folder"
    return [Problem(name, settings.get(name, new.get(name)), reason, fix) for name in names]


def _read(folder: Path, argument: str = "output_dir") -> dict[str, Any] | None:
    """Return the content of the folder's stages.json, or None without one. `argument` names the folder in errors."""
    try:
        found = read_json(folder / STAGES)
        return {name: dict(found[name]) for name in ("settings", "contents", "stages")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {STAGES} cannot be read ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, str(folder), reason, "name another folder")) from error


def is_whole(folder: Path, last: str) -> bool:
    """Return whether the stage that writes the file `last`, which comes after all others, is finished."""
    stored = _read(folder)
    return stored is not None and last in stored["stages"]


def recorded_contents(folder: Path) -> dict[str, Any]:
    """Return the contents that the stages of a folder were made from: {argument: hash or other JSON value}."""
    stored = _read(folder)
    return {} if stored is None else stored["contents"]


def lost_settings(folder: Path, settings: Mapping[str, Any], argument: str) -> list[str]:
    """Return the names of the settings that the stages of a folder were made with and that `settings` lacks."""
    stored = _read(folder, argument)
    return [] if stored is None else sorted(stored["settings"].keys() - settings.keys())


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in settings.items() if name not in _NEUTRAL | _NAMES}


def _plain(value: Any) -> Any:
    """Return the value as it is after writing it to JSON and reading it back. Types that JSON lacks become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set) else value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _sha256(path: Path) -> str:
    """Return the hash of a file, or the hash of the names and hashes of all files in a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return json_sha256([[file.relative_to(path).as_posix(), file_sha256(file)] for file in files])


def json_sha256(value: Any) -> str:
    """Return the hash of a value as JSON with sorted keys. Types that JSON lacks become text."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the hash of everything in a tokenizer that can change the tokens of a text."""
    return json_sha256([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map])
