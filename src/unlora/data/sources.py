"""Load rows from a dataset on the Hugging Face Hub, a local folder or a file.

A folder holds `<configuration>.jsonl` or `<configuration>/<split>.jsonl`, or files of the other formats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.settings.data import ForgetData, HoldoutData, RetainData, TrainDataConfig

Record = Mapping[str, Any]
# A dataset's or model's name on the Hub: "name" or "owner/name".
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Ending of a file -> the loader of `datasets` that reads it.
_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# What the Hub adds to a split in the name of a file that holds all of it.
_WHOLE = "-00000-of-00001"


@dataclass(frozen=True)
class Stream:
    """How rows are drawn from a dataset whose length is unknown or that does not fit in memory.

    Args:
        rows: the maximum number of rows to read.
        seed: the seed of their order.
        buffer_size: the number of rows in memory, among which the next one is drawn.
    """

    rows: int
    seed: int
    buffer_size: int


def load_records(
    path: str,
    name: str | None = None,
    split: str | None = None,
    *,
    argument: str = "data",
    stream: Stream | None = None,
) -> list[Record]:
    """Load the rows of one dataset.

    Args:
        path: a file (.jsonl, .json, .csv, .parquet), a folder, or a dataset's name on the Hugging Face Hub. A folder
            holds `<name>.jsonl` or, if configurations have several splits, `<name>/<split>.jsonl` (or files of the
            other formats). A dataset downloaded from the Hub is such a folder.
        name: the configuration. In a folder, the file without its ending, or the folder inside it.
        split: as in `datasets.load_dataset`, slices such as "train[:160]" included. Defaults to "train".
        argument: what the user calls this dataset, for error messages.
        stream: draw only some of the rows. None reads all of them.

    Returns:
        The rows, at least one.

    Raises:
        InputError: there is no such dataset, its format is unknown, or it has no rows.
    """
    rows = _load(path, name, split or "train", argument, stream)
    if not rows:
        raise InputError(Problem(argument, path, "the dataset has no rows", "give a dataset with at least one row"))
    return rows


def load_set(
    settings: ForgetData | RetainData | HoldoutData | TrainDataConfig, name: str, stream: Stream | None = None
) -> list[Record]:
    """Load the dataset that the settings `<name>_data`, `<name>_name` and `<name>_split` describe.

    Args:
        settings: has these three, such as `DataConfig` with "forget" and "retain".
        name: which set.
        stream: as for `load_records`.
    """
    path, configuration, split = (getattr(settings, f"{name}_{part}") for part in ("data", "name", "split"))
    return load_records(path, configuration, split, argument=f"{name}_data", stream=stream)


def _load(path: str, name: str | None, split: str, argument: str, stream: Stream | None) -> list[Record]:
    local = Path(path)
    if local.is_dir() and name is not None and (local / name).is_dir():
        stem, bracket, cut = split.partition("[")
        # `datasets` calls the whole of a single file "train", whatever split the file holds.
        local, split = _file_in_folder(local / name, stem, argument, "split"), f"train{bracket}{cut}"
    elif local.is_dir():
        local = _file_in_folder(local, name, argument, "configuration")
    if local.is_file():
        return _load_file(local, split, argument, stream)
    if not HUB_ID.fullmatch(path) or local.suffix in _LOADERS:
        raise InputError(Problem(argument, path, "no such file or folder", "check the path"))
    return _load_from_hub(path, name, split, argument, stream)


def _load_file(file: Path, split: str, argument: str, stream: Stream | None) -> list[Record]:
    import datasets

    if file.suffix not in _LOADERS:
        fix = f"use one of {', '.join(_LOADERS)}"
        raise InputError(Problem(argument, str(file), f"files of type {file.suffix!r} are not read", fix))
    if file.stat().st_size == 0:
        return []
    try:
        with _without_telemetry():
            return _rows(stream, _LOADERS[file.suffix], data_files=str(file), split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = f"split {split!r} cannot be read: {error.__cause__ or error}"  # the cause is what the reader said
        fix = f"check the split, and that the file is valid {file.suffix[1:]}"
        raise InputError(Problem(argument, str(file), reason, fix)) from error


def _load_from_hub(path: str, name: str | None, split: str, argument: str, stream: Stream | None) -> list[Record]:
    import datasets

    try:
        return _rows(stream, path, name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = f"it is no local path, and the Hub gave no such dataset ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, path, reason, "check the path, the hub name, or the network")) from error


def _rows(stream: Stream | None, *args: Any, **kwargs: Any) -> list[Record]:
    import datasets

    if stream is None:
        return list(datasets.load_dataset(*args, **kwargs))
    rows = datasets.load_dataset(*args, **kwargs, streaming=True)
    return list(rows.shuffle(seed=stream.seed, buffer_size=stream.buffer_size).take(stream.rows))


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep `datasets` from reporting to Hugging Face that it read a local file."""
    import datasets

    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _file_in_folder(folder: Path, name: str | None, argument: str, kind: str) -> Path:
    known = {file.stem.removesuffix(_WHOLE): file for file in sorted(folder.iterdir()) if file.suffix in _LOADERS}
    if name in known:
        return known[name]
    names = ", ".join(known) or "none"
    reason = f"the folder has no {kind} {name!r}" if name else f"a folder needs the name of a {kind}"
    raise InputError(Problem(argument, str(folder), reason, f"name one of the {kind}s there: {names}"))


def has_keys(row: Record, *keys: str) -> bool:
    """Return whether the row has all keys. A None counts as a missing key, because tables fill their gaps with it."""
    return all(row.get(key) is not None for key in keys)


def questions_of(rows: Iterable[Record]) -> list[str]:
    """Return what is asked in the rows, each question once: questions, and what users say in conversations."""
    turns = (turn for row in rows if has_keys(row, "messages") for turn in row["messages"])
    said = [turn["content"] for turn in turns if turn["role"] == "user"]
    asked = [row["question"] for row in rows if has_keys(row, "question")]
    return list(dict.fromkeys(str(question) for question in [*asked, *said] if question))


def is_text(row: Record) -> bool:
    """Return whether the row is plain text, and not a question or a conversation with a column of text beside it."""
    return has_keys(row, "text") and not has_keys(row, "question", "answer") and not has_keys(row, "messages")


def without_short_texts(rows: Sequence[Record], min_characters: int, argument: str = "data") -> list[Record]:
    """Return the rows without plain texts of fewer characters. Questions and conversations of any length stay.

    Raises:
        InputError: nothing is left.
    """
    kept = [row for row in rows if not is_text(row) or len(str(row["text"])) >= min_characters]
    if not kept:
        reason = f"none of the {len(rows)} texts in {argument} has so many characters"
        raise InputError(Problem("min_characters", min_characters, reason, "use a lower number"))
    return kept


def check_overlap(
    one: Iterable[Record], other: Iterable[Record], names: tuple[str, str] = ("forget", "retain")
) -> None:
    """Raise `InputError` if rows of the first set are in the second: the forget and the retain loss would conflict."""
    known = {fingerprint(row) for row in other}
    rows = [fingerprint(row) for row in one]
    shared = sum(row in known for row in rows)
    if shared:
        reason = f"{shared} of the {len(rows)} {names[0]} rows are in the {names[1]} set too"
        fix = f"remove those rows from the {names[1]} set"
        raise InputError(Problem(f"{names[1]}_data", f"{len(known)} distinct rows", reason, fix))


def fingerprint(row: Record) -> str:
    """Return what a row teaches, as a string that ignores all other columns."""
    if has_keys(row, "question", "answer"):
        return json.dumps([str(row["question"]).strip(), str(row["answer"]).strip()])
    return json.dumps([row.get(key) for key in ("messages", "text")], sort_keys=True)
