"""Read the rows of a file without type inference: `00731`, `1971-03-02` and `NA` remain text.

Loaders that infer types are not used, because a wrong guess would change what the model learns or forgets.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.common.files import LFS_FIX, is_lfs_pointer
from unlora.common.reading import duplicates, unique_keys

Row = dict[str, Any]
# Files that `Dataset.save_to_disk` writes next to the rows.
_SAVED = ("state.json", "dataset_info.json")


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `Dataset.save_to_disk` wrote this folder."""
    return all((folder / name).is_file() for name in _SAVED)


def iter_rows(path: Path, argument: str) -> Iterator[Row]:
    """Yield the rows of a file, or of a folder that `Dataset.save_to_disk` wrote.

    Args:
        path: the file or the folder.
        argument: the dataset's name in error messages.

    Raises:
        InputError: it cannot be read.
    """
    import pyarrow

    if path.is_file() and is_lfs_pointer(path):
        raise InputError(Problem(argument, str(path), "it is a git-lfs pointer in place of the data", LFS_FIX))
    read = READERS[path.suffix] if path.is_file() else _saved_rows
    try:
        yield from read(path)
    except (OSError, ValueError, RecursionError, csv.Error, pyarrow.ArrowException) as error:
        kind = f"valid {path.suffix[1:]} in UTF-8" if path.is_file() else "a folder that save_to_disk wrote"
        fix = f"check that it is {kind}"
        raise InputError(Problem(argument, str(path), f"it cannot be read ({error})", fix)) from error


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line, object_pairs_hook=unique_keys)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from error
                yield _checked_row(row, f"line {number}")


def _json(file: Path) -> Iterator[Row]:
    """Read a list of rows, or JSON lines in a .json file, which are common on the Hub."""
    with file.open(encoding="utf-8-sig") as text:
        is_list = text.read(1000).lstrip().startswith("[")
    if not is_list:
        yield from _json_lines(file)
        return
    for place, row in enumerate(json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)):
        yield _checked_row(row, f"element {place}")


def _checked_row(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is of type {type(row).__name__}, and a row is an object with named columns")
    return row


def _csv(file: Path) -> Iterator[Row]:
    """Read a table. All cells are text, and empty cells become None."""
    csv.field_size_limit(2**31 - 1)  # the default of 131072 characters is too few for long texts
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.reader(lines, strict=True)
        names = next(table, [])
        if twice := duplicates(names):
            raise ValueError(f"several columns are called {twice[0]!r}")
        for cells in table:
            if len(cells) > len(names):
                raise ValueError(f"line {table.line_num} has {len(cells)} cells, and the header {len(names)}")
            if cells:
                yield {name: cell or None for name, cell in zip(names, cells, strict=False)}


def _parquet(file: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        for batch in table.iter_batches():
            yield from batch.to_pylist()


def _saved_rows(folder: Path) -> Iterator[Row]:
    from datasets import load_from_disk

    yield from load_from_disk(str(folder))


# File extension -> reader.
READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
