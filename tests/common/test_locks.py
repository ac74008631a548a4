"""Only one process writes to a folder at a time. Its lock is released when it ends, even if it is killed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from unlora.common.errors import InputError
from unlora.common.locks import check_free, only_one, writing_to


def forked(work):
    """Run `work` in a forked process, and return the process id as soon as `work` calls the function it is given."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work(lambda: os.write(writing, b"."))
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"."
    os.close(reading)
    return process


def test_a_second_writer_is_refused_until_the_first_one_is_killed(tmp_path):
    folder = tmp_path / "run"

    def hold(told):
        with writing_to(folder):
            told()
            time.sleep(60)

    process = forked(hold)
    with pytest.raises(InputError, match=r"output_dir=.*another process is writing to it"), writing_to(folder):
        pass
    with pytest.raises(InputError, match="another process"):
        check_free(folder)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert (folder / ".lock").exists()
    check_free(folder)
    with writing_to(folder):
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_in_which_nothing_was_written_is_deleted(tmp_path):
    with writing_to(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with writing_to(tmp_path / "mine" / "run"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="it cannot be written to"), writing_to(place):
            pass


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_for_the_first_unless_that_was_killed(tmp_path, killed):
    target, waited = tmp_path / "cache" / "model", []
    reading, writing = os.pipe()

    def make(told):
        os.close(writing)
        with only_one(target, told):
            told()
            os.read(reading, 1)
            target.write_text("made")

    def wait():
        waited.append(1)
        os.write(writing, b".")  # only now does the first process go on

    process = forked(make)
    os.close(reading)
    if killed:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with only_one(target, wait):
        assert target.exists() != killed
    os.close(writing)
    assert waited == ([] if killed else [1])
    if not killed:
        os.waitpid(process, 0)
    assert not (tmp_path / "cache" / ".model.lock").exists()
