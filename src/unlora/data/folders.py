"""Find the files of a split in a folder: in our own layout, a clone from the Hub, or the output of `save_to_disk`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.data.files import READERS, is_saved_dataset

# Suffix of a shard's file name on the Hub: "-00000-of-00002", sometimes followed by a hash.
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?$")
# Files of `datasets` that describe a dataset and hold no rows.
_DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
# Name that `datasets` gives to the only split of a dataset without splits.
WHOLE = "train"


def find_table(folder: Path, name: str | None, split: str, argument: str) -> list[Path]:
    """Return the files (or folders of `save_to_disk`) that hold one split, in the order of their rows.

    Args:
        folder: the dataset's folder.
        name: the configuration: one that the folder's README.md declares, a subfolder, or a file without its extension.
            None if there is only one configuration, whose splits are in the folder itself or in `data/`.
        split: the name of the split.
        argument: the dataset's name in error messages.

    Raises:
        InputError: there is no such configuration or split, or one of its files is missing.
    """
    declared = _declared(folder)
    chosen = name if name is not None else _default_configuration(declared)
    if chosen in declared:
        return _files_named(declared[chosen], split, folder, argument, "split")
    tables = _tables(folder)
    if name is None:
        if is_saved_dataset(folder):
            return _only_split([folder], split, folder, argument)
        splits = {**_tables(folder / "data"), **tables}
        kind = "configuration" if WHOLE not in splits else "split"
        return _files_named(_with_default_split(splits), split, folder, argument, kind)
    if name in tables:
        return _only_split(tables[name], split, folder, argument)
    inside = folder / name
    if PurePath(name).name == name and inside.is_dir():
        return _files_named(_with_default_split(_tables(inside)), split, inside, argument, "split")
    return _files_named({**declared, **tables}, name, folder, argument, "configuration")


def _tables(folder: Path) -> dict[str, list[Path]]:
    """Return the tables in a folder by name: files, with shards grouped, and folders of `save_to_disk`."""
    tables: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in READERS and path.name not in _DESCRIPTIONS and not path.name.startswith("."):
            tables.setdefault(_SHARD.sub("", path.stem), []).append(path)
        elif is_saved_dataset(path):
            tables[path.name] = [path]
    return tables


def _with_default_split(tables: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """If there is only one table, make it available as the split "train" too, unless it has another split's name."""
    from datasets.data_files import SPLIT_KEYWORDS

    others = {name for split, names in SPLIT_KEYWORDS.items() if split != WHOLE for name in names}
    if len(tables) != 1 or not others.isdisjoint(tables):
        return tables
    return {WHOLE: next(iter(tables.values())), **tables}


def _only_split(table: list[Path], split: str, folder: Path, argument: str) -> list[Path]:
    return _files_named({WHOLE: table}, split, folder, argument, "split")


def _files_named(known: Mapping[str, Any], name: str, folder: Path, argument: str, kind: str) -> list[Path]:
    """Return the files of this name, or raise `InputError` with the names that exist."""
    if found := known.get(name):
        _check_shards(found, folder, argument)
        return list(found)
    reason = f"the folder has no {kind} {name!r}"
    if kind == "configuration" and name == WHOLE:  # nothing was named
        reason = "a folder needs the name of a configuration"
    raise InputError(
        Problem(argument, str(folder), reason, f"name one of the {kind}s there: {', '.join(known) or 'none'}")
    )


def _check_shards(files: Sequence[Path], folder: Path, argument: str) -> None:
    """Raise `InputError` if the file names of a split give a number of shards, and one of them is missing."""
    shards = [match for file in files if (match := _SHARD.search(file.stem))]
    there = {int(shard[1]) for shard in shards}
    for wanted in {int(shard[2]) for shard in shards}:
        if missing := sorted(set(range(wanted)) - there):
            reason = f"file {missing[0] + 1} of the {wanted} of this split is missing"
            raise InputError(Problem(argument, str(folder), reason, "copy or download the dataset again"))


def _declared(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return {configuration: {split: files}} from the metadata in README.md, which the Hub uses."""
    from datasets.data_files import sanitize_patterns
    from huggingface_hub import metadata_load

    readme = folder / "README.md"
    metadata = (metadata_load(readme) if readme.is_file() else None) or {}
    declared = {}
    for entry in metadata.get("configs") or ():
        if "data_files" in entry:
            base = folder / entry.get("data_dir", "")
            patterns = sanitize_patterns(entry["data_files"])
            declared[str(entry.get("config_name", "default"))] = {
                str(split): sorted({path for pattern in wanted for path in _matches(base, str(pattern))})
                for split, wanted in patterns.items()
            }
    return declared


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern from README.md. Patterns cannot refer to files outside the folder."""
    inside = PurePath(pattern)
    if inside.is_absolute() or ".." in inside.parts:
        return []
    return [path for path in folder.glob(pattern) if path.suffix in READERS]


def _default_configuration(declared: Mapping[str, Any]) -> str | None:
    """Return the configuration to use if none is named, or None."""
    return next(iter(declared)) if len(declared) == 1 else "default" if "default" in declared else None
