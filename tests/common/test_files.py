import errno
import json
import os

import pytest

from unlora.common.files import atomic_path, replace_folder, why_unwritable, write_json, write_text


def fail_after(path, act):
    def fail():
        with atomic_path(path) as partial:
            act(partial)
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()


def test_a_failing_block_leaves_nothing(tmp_path):
    fail_after(tmp_path / "file", lambda partial: partial.write_text("half"))
    fail_after(tmp_path / "folder", lambda partial: (partial.mkdir(), (partial / "inner").write_text("half")))
    fail_after(tmp_path / "untouched", lambda partial: None)
    assert not list(tmp_path.iterdir())


def test_a_failing_block_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    fail_after(file, lambda partial: partial.write_text("half"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_nothing_is_seen_under_the_name_before_the_block_ends(tmp_path):
    file = tmp_path / "new" / "file"
    with atomic_path(file) as partial:
        partial.write_text("whole")
        assert not file.exists()
        assert partial.parent.parent == file.parent  # on the same file system, so that the rename is atomic
    assert {path.name: path.read_text() for path in file.parent.iterdir()} == {"file": "whole"}


def test_a_whole_folder_appears_at_once(tmp_path):
    with atomic_path(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "inner").write_text("whole")
        assert not (tmp_path / "folder").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "inner").read_text() == "whole"


def test_a_used_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")

    def replace():
        with atomic_path(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "other").write_text("other")

    with pytest.raises(OSError, match="not empty"):
        replace()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "mine"]


def test_json_and_text_are_written_as_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"ε": [0.1, None], "name": "Žofie"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ε": [0.1, None], "name": "Žofie"}
    write_text(tmp_path / "a.txt", "λ\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ\n".encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_json_are_refused_and_the_old_file_stays(tmp_path, value):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", [value])
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_partial_files_of_killed_processes_are_deleted_by_the_next_write(tmp_path):
    killed = os.fork()
    if killed == 0:
        os._exit(0)
    os.waitpid(killed, 0)
    (tmp_path / f".file.{killed}.partial").write_text("half")
    (tmp_path / f".file.{os.getpid()}.partial").mkdir()  # left by an earlier process with the same id
    (tmp_path / f".file.{os.getppid()}.partial").write_text("half")  # belongs to a running process
    (tmp_path / f".other.{killed}.partial").write_text("half")
    write_text(tmp_path / "file", "whole")
    left = {f".file.{os.getppid()}.partial", f".other.{killed}.partial", "file"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    place = tmp_path / f".file.{os.getpid()}.partial"
    place.symlink_to(tmp_path / "precious")
    with atomic_path(tmp_path / "file") as partial:
        assert not place.is_symlink()
        assert place.stat().st_mode & 0o077 == 0  # no other user can create a link in it
        partial.write_text("mine")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"precious": "precious", "file": "mine"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["old", "old/new"]


def test_errors_of_a_full_disk_are_distinguished_from_others():
    full = "No space left on device"
    assert why_unwritable(OSError(errno.ENOSPC, full, "a.json")) == f"{full}: a.json"
    assert why_unwritable(RuntimeError(f"I/O error: {full} (os error {errno.ENOSPC})")) == full
    assert why_unwritable(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert why_unwritable(ValueError("full")) is None
