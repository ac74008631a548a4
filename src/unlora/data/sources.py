"""Where records come from: a hub dataset, a local folder of `<config>.jsonl` or `<config>/<split>.jsonl`, or a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem

Record = Mapping[str, Any]
LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# What the hub appends to the split in the name of a file that holds all of it.
WHOLE = "-00000-of-00001"
# What a hub dataset is called: "name" or "owner/name".
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Stream:
    """How rows are drawn from a dataset whose length nobody knows, or that does not fit in memory.

    Args:
        rows: the most rows that are read.
        seed: of their order.
        buffer_size: rows among which each next one is drawn: so far apart are rows mixed, and so many are in memory.
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
    """Reads the records of one dataset.

    Args:
        path: a file (.jsonl, .json, .csv, .parquet), a folder that holds `<name>.jsonl` or, where configurations have
            several splits, `<name>/<split>.jsonl` (or one of the other endings), or a dataset's name on the Hugging
            Face hub; what is downloaded from there is such a folder.
        name: the configuration: the file's stem or the folder's name in a folder, its name on the hub.
        split: as in `datasets.load_dataset`, slices included ("train[:160]"); "train" if not given.
        argument: what the user calls this dataset, for error messages.
        stream: read only so many rows, one after the other; all if not given.

    Returns:
        The rows, at least one.

    Raises:
        InputError: nothing there, an unknown kind of file, or no rows.
    """
    rows = _load(path, name, split or "train", argument, stream)
    if not rows:
        raise InputError(Problem(argument, path, "the dataset has no rows", "give a dataset with at least one row"))
    return rows


def load_set(settings: Any, name: str, stream: Stream | None = None) -> list[Record]:
    """Load the dataset that the settings `<name>_data`, `<name>_name` and `<name>_split` describe.

    Args:
        settings: has these three, such as `DataConfig` with "forget" and "retain".
        name: which set.
        stream: as for `load_records`.
    """
    path, configuration, split = (getattr(settings, f"{name}_{part}") for part in ("data", "name", "split"))
    return load_records(path, configuration, split, argument=f"{name}_data", stream=stream)


def _load(path: str, name: str | None, split: str, argument: str, stream: Stream | None) -> list[Record]:
    import datasets

    local = Path(path)
    if local.is_dir() and name is not None and (local / name).is_dir():
        stem, bracket, cut = split.partition("[")
        local, split = _file_in_folder(local / name, stem, argument, "split"), f"train{bracket}{cut}"
    elif local.is_dir():
        local = _file_in_folder(local, name, argument)
    if local.is_file():
        return _load_file(local, split, argument, stream)
    if not HUB_ID.fullmatch(path) or local.suffix in LOADERS:
        raise InputError(Problem(argument, path, "no such file or folder", "check the path"))
    try:
        return _rows(stream, path, name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = f"neither a local path nor a dataset that the hub gave ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, path, reason, "check the path, the hub name, or the network")) from error


def _rows(stream: Stream | None, *args: Any, **kwargs: Any) -> list[Record]:
    import datasets

    if stream is None:
        return list(datasets.load_dataset(*args, **kwargs))
    rows = datasets.load_dataset(*args, **kwargs, streaming=True)
    return list(rows.shuffle(seed=stream.seed, buffer_size=stream.buffer_size).take(stream.rows))


def _load_file(file: Path, split: str, argument: str, stream: Stream | None) -> list[Record]:
    import datasets

    if file.suffix not in LOADERS:
        fix = f"use one of {', '.join(LOADERS)}"
        raise InputError(Problem(argument, str(file), f"files of kind {file.suffix!r} are not read", fix))
    if file.stat().st_size == 0:
        return []
    try:
        with _not_counted():
            return _rows(stream, LOADERS[file.suffix], data_files=str(file), split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error  # datasets wraps what the reader said
        reason = f"split {split!r} cannot be read: {cause}"
        fix = f"check the split, and that the file is valid {file.suffix[1:]}"
        raise InputError(Problem(argument, str(file), reason, fix)) from error


@contextmanager
def _not_counted() -> Iterator[None]:
    """Within, `datasets` does not tell a server of its makers that a file was read: local files stay local."""
    import datasets

    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _file_in_folder(folder: Path, name: str | None, argument: str, kind: str = "configuration") -> Path:
    known = {file.stem.removesuffix(WHOLE): file for file in sorted(folder.iterdir()) if file.suffix in LOADERS}
    if name in known:
        return known[name]
    names = ", ".join(known) or "none"
    reason = f"the folder has no {kind} {name!r}" if name else f"a folder needs the name of a {kind}"
    raise InputError(Problem(argument, str(folder), reason, f"name one of the {kind}s there: {names}"))


def has_keys(row: Record, *keys: str) -> bool:
    """Whether the row has them all; a missing value counts as a missing key, since tables fill gaps with None."""
    return all(row.get(key) is not None for key in keys)


def without_short_texts(rows: Sequence[Record], min_characters: int, argument: str = "data") -> list[Record]:
    """The rows but for plain texts of fewer characters; questions and conversations all stay.

    Raises:
        InputError: nothing is left.
    """
    kept = [row for row in rows if not is_text(row) or len(str(row["text"])) >= min_characters]
    if not kept:
        reason = f"none of the {len(rows)} texts in {argument} has so many characters"
        raise InputError(Problem("min_characters", min_characters, reason, "use a lower number"))
    return kept


def is_text(row: Record) -> bool:
    """Whether a row is plain text, which a question or a conversation beside it rules out."""
    return has_keys(row, "text") and not has_keys(row, "question", "answer") and not has_keys(row, "messages")


def check_overlap(
    one: Iterable[Record], other: Iterable[Record], names: tuple[str, str] = ("forget", "retain")
) -> None:
    """Raises `InputError` if rows of one set stand in the other: the forget and retain losses would fight over them."""
    known = {fingerprint(row) for row in other}
    rows = [fingerprint(row) for row in one]
    shared = sum(row in known for row in rows)
    if shared:
        reason = f"{shared} of the {len(rows)} {names[0]} rows are in the {names[1]} set too"
        fix = f"remove those rows from the {names[1]} set"
        raise InputError(Problem(f"{names[1]}_data", f"{len(known)} distinct rows", reason, fix))


def fingerprint(row: Record) -> str:
    """What a row teaches: its text alone, whatever other columns stand beside it."""
    if has_keys(row, "question", "answer"):
        return json.dumps([str(row["question"]).strip(), str(row["answer"]).strip()])
    return json.dumps([row.get(key) for key in ("messages", "text")], sort_keys=True)
