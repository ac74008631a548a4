"""Locks on folders. The operating system releases a lock when its process ends, even if it is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unlora.common.errors import InputError, Problem
from unlora.common.files import LOCK


@contextmanager
def writing_to(folder: Path, argument: str = "output_dir") -> Iterator[None]:
    """Hold the lock on writing to a folder, which is created if necessary.

    Folders that were created here and are still empty at the end are deleted, so that refused input leaves no trace.

    Raises:
        InputError: another process is writing to the folder, or it cannot be created.
    """
    from filelock import FileLock, Timeout

    created = _create(folder, argument)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        reason, fix = "another process is writing to it", "wait until it has ended, or name a new folder"
        raise InputError(Problem(argument, str(folder), reason, fix)) from error
    except OSError as error:
        raise InputError(_cannot_write(argument, folder, error)) from error
    try:
        yield
    finally:
        with suppress(OSError):  # the disk may have become read-only
            (folder / LOCK).unlink()  # before the release: afterwards it may be the lock of another process
        lock.release()
        for path in created:
            with suppress(OSError):  # raised if it is not empty
                path.rmdir()


@contextmanager
def only_one(target: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock on creating a file or a folder, and wait for another process that holds it.

    Args:
        target: the file or folder to create. The lock is a hidden file next to it.
        waiting: called once, before waiting, if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.name}{LOCK}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def check_free(folder: Path, argument: str = "output_dir") -> None:
    """Raise `InputError` if another process is writing to the folder."""
    if (folder / LOCK).exists():
        with writing_to(folder, argument):
            pass


def _create(folder: Path, argument: str) -> list[Path]:
    """Create the folder, and return the folders that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(_cannot_write(argument, folder, error)) from error
    return missing


def _cannot_write(argument: str, folder: Path, error: OSError) -> Problem:
    return Problem(argument, str(folder), f"it cannot be written to ({error.strerror})", "name another folder")
