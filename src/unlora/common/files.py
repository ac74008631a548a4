"""Write files and folders atomically: they appear complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unlora.common.errors import InputError, Problem

# What a pointer of git-lfs begins with, and how to get what it stands for.
_LFS = b"version https://git-lfs.github.com/spec/"
LFS_FIX = "run `git lfs pull` in the repository, or download it with `hf download`"


def is_lfs_pointer(path: str | Path) -> bool:
    """Return whether the file is what a clone without git-lfs has in place of a large file."""
    with Path(path).open("rb") as file:
        return file.read(len(_LFS)) == _LFS


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a folder, and rename it to `path` if the block succeeds.

    An existing file is replaced. A folder that is not empty raises `OSError`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # It is in the same folder, because a rename is only atomic within one file system. The process id keeps several
    # processes that write the same file apart.
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[object]) -> None:
    """Write one JSON value per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically. NaN and infinity raise `ValueError`, because JSON does not have them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_unused(folder: Path, argument: str) -> None:
    """Raise `InputError` if `folder` is a file, or a folder with anything in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(Problem(argument, str(folder), "it is already in use", "name a new folder or empty this one"))
