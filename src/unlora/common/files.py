"""Write files and folders atomically: they appear complete or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unlora.common.errors import InputError, Problem, raise_if

# Lock file in a folder, held by the process that writes to the folder.
LOCK = ".lock"
# Prefix and suffix of the names of unfinished files and folders.
_HIDDEN, _UNFINISHED = ".", ".partial"
# Error numbers of a disk or a folder that cannot be written to.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# First bytes of a git-lfs pointer, and how to get the file that it points to.
_LFS = b"version https://git-lfs.github.com/spec/"
LFS_FIX = "run `git lfs pull` in the repository, or download it with `hf download`"


def is_lfs_pointer(path: str | Path) -> bool:
    """Return whether the file is a git-lfs pointer, which a clone without git-lfs has in place of a large file."""
    with Path(path).open("rb") as file:
        return file.read(len(_LFS)) == _LFS


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` for a file or a folder, and rename it to `path` if the block succeeds.

    Everything is flushed to disk before the rename, so the result is complete even after a power failure. An existing
    file is replaced; a folder that is not empty raises `OSError`. Partial files that killed processes left behind for
    the same path are deleted.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_of(target)
    private = unfinished(target)
    private.mkdir(mode=0o700)  # fails if the path exists, so a link planted there is never followed
    try:
        yield private / target.name
        flush(private / target.name)
        os.replace(private / target.name, target)
    finally:
        remove(private)
    _flush_one(target.parent)


def new_folder(path: Path) -> None:
    """Create a folder that only this user can access, and replace whatever is at its path."""
    remove(path)
    path.mkdir(mode=0o700)


def flush(path: Path) -> None:
    """Flush a file, or a folder and everything in it, to disk."""
    for part in (*path.rglob("*"), path):
        _flush_one(part)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(target: Path) -> Path:
    """Return the path of the hidden folder in which this process prepares a file or a folder.

    It is next to the target, because a rename is only atomic within one file system. Its name contains the process id,
    so that processes that write the same file do not collide.
    """
    return target.with_name(f"{_HIDDEN}{target.name}.{os.getpid()}{_UNFINISHED}")


def replace_folder(new: Path, target: Path) -> None:
    """Move a finished folder to its place. An earlier one is moved away first, so it is never left half deleted."""
    old = unfinished(target)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    _flush_one(target.parent)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete every unfinished file and folder in `folder`. No other process may be writing to it."""
    for path in sorted(folder.rglob(f"{_HIDDEN}*{_UNFINISHED}")):
        remove(path)


def _remove_leftovers_of(target: Path) -> None:
    """Delete partial files of `target` whose process has ended, or had the same process id as this one."""
    import psutil

    for path in target.parent.glob(f"{_HIDDEN}{glob.escape(target.name)}.*{_UNFINISHED}"):
        number = path.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if number.isdecimal() and (int(number) == os.getpid() or not psutil.pid_exists(int(number))):
            remove(path)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[object]) -> None:
    """Write one JSON value per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically. NaN and infinity raise `ValueError`, because JSON cannot represent them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def why_unwritable(error: BaseException) -> str | None:
    """Return why a file could not be written (a full disk, no permission, ...), or None for any other error."""
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    # The safetensors library reports the error number of the system in the text of its errors only.
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else None
    return os.strerror(number) if number in _UNWRITABLE else None


def in_use(folder: Path) -> bool:
    """Return whether `folder` is a file, or contains anything besides the leftovers of killed processes."""
    return folder.exists() and (not folder.is_dir() or any(not _is_leftover(path) for path in folder.iterdir()))


def _is_leftover(path: Path) -> bool:
    return path.name == LOCK or (path.name.startswith(_HIDDEN) and path.name.endswith(_UNFINISHED))


def check_unused(folder: Path, argument: str) -> None:
    """Raise `InputError` if `folder` is in use or cannot be written to."""
    if in_use(folder):
        raise InputError(Problem(argument, str(folder), "it is already in use", "name a new folder or empty this one"))
    raise_if(unwritable_problems(folder, argument))


def unwritable_problems(path: Path, argument: str, fix: str = "name a place that you may write to") -> list[Problem]:
    """Return a problem if no file or folder can be created at `path`. Its parent folders may be missing."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    folder = existing.parent if existing == path and existing.is_file() else existing
    try:  # permission bits are not enough: the user may be root, or the file system read-only
        with tempfile.TemporaryDirectory(prefix=_HIDDEN, suffix=_UNFINISHED, dir=folder):
            return []
    except OSError as error:
        return [Problem(argument, str(path), f"nothing can be written to {folder} ({error.strerror})", fix)]
