"""A run is resumed only with the inputs it was started with, and only unchanged stages count as finished."""

from __future__ import annotations

import json
import os

import pytest

from unlora.common.errors import InputError
from unlora.runs.stages import Stages, check_start, is_whole

SETTINGS = {"learning_rate": 1e-4, "loss": "ihl", "save_steps": 5, "forget_data": "a.jsonl"}
CONTENTS = {"forget_data": "hash of the rows", "on": None}


def begun(folder, settings=SETTINGS, contents=CONTENTS, resume="true"):
    stages = Stages(folder, settings, contents, resume)
    stages.start()
    return stages


@pytest.fixture
def folder(tmp_path):
    """Return a run folder with one finished stage, whose output is a file and a folder."""
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "weights").write_text("weights")
    (run / "log.json").write_text("{}")
    (run / "stages.json").write_text(json.dumps({"settings": {}, "contents": {}, "stages": {}}))
    stages = begun(run, {}, {})
    stages.key = {"settings": {"learning_rate": 1e-4, "loss": "ihl"}, "contents": CONTENTS}
    stages.finish("log.json", "adapter")
    return run


def test_with_the_same_settings_and_contents_the_finished_stages_are_known(folder):
    stages = begun(folder, {**SETTINGS, "save_steps": 7, "forget_data": "moved.jsonl"})
    assert stages.is_finished("log.json")
    assert stages.is_finished("adapter")
    assert stages.are_finished("adapter")
    assert not stages.is_finished("other.json")


@pytest.mark.parametrize("file", ["log.json", "adapter/weights", "adapter/added"])
def test_a_stage_whose_files_have_changed_is_not_finished(folder, file):
    (folder / file).write_text("changed")
    stages = begun(folder)
    assert [stages.is_finished(name) for name in ("log.json", "adapter")] == [file != "log.json", file == "log.json"]
    assert not stages.are_finished("adapter")


def test_a_stage_whose_output_was_deleted_is_not_finished(folder):
    (folder / "log.json").unlink()
    assert not begun(folder).is_finished("log.json")


@pytest.mark.parametrize(
    ("changes", "contents", "told"),
    [
        ({"learning_rate": 1e-3}, {}, r"learning_rate=0.001: the run in .* was started with 0.0001"),
        ({"loss": "npo", "r": 3}, {}, r"(?s)loss='npo'.*'ihl'.*r=3: .* with the default"),
        ({}, {"forget_data": "other rows"}, "forget_data='a.jsonl': its content is not the one"),
        ({}, {"on": "hash of an adapter"}, "on='hash of an adapter'"),
    ],
)
def test_differences_are_named_and_nothing_is_written(folder, changes, contents, told):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match=told):
        begun(folder, SETTINGS | changes, CONTENTS | contents)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_removed_setting_is_a_difference(folder):
    with pytest.raises(InputError, match=r"loss=None: .* started with 'ihl'"):
        begun(folder, {"learning_rate": 1e-4})


def test_a_folder_in_use_is_not_started_again_and_one_of_unknown_origin_not_resumed(folder, tmp_path):
    for resume in (None, False, "false"):
        with pytest.raises(InputError, match="already in use"):
            check_start(folder, SETTINGS, resume)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(InputError, match=r"it has no stages\.json"):
        check_start(tmp_path / "photos", SETTINGS, "true")
    with pytest.raises(InputError, match=r"resume_from_checkpoint=.*it is not in"):
        check_start(folder, SETTINGS, str(tmp_path / "photos" / "checkpoint-1"))
    check_start(folder, SETTINGS, str(folder / "checkpoint-1"))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": 1, "contents": {}, "stages": {}}'])
def test_an_invalid_file_of_stages_is_refused(folder, text):
    (folder / "stages.json").write_text(text)
    with pytest.raises(InputError, match=r"its stages\.json cannot be read"):
        check_start(folder, SETTINGS, "true")


def test_leftovers_of_a_killed_process_do_not_block_a_folder_and_are_deleted(tmp_path):
    run = tmp_path / "run"
    (run / f".adapter.{os.getpid()}.partial").mkdir(parents=True)
    (run / ".lock").touch()
    begun(run, resume=None)
    assert [path.name for path in run.iterdir() if path.name != ".lock"] == ["stages.json"]


def test_a_run_is_whole_with_its_last_stage(folder):
    assert is_whole(folder, "adapter")
    assert not is_whole(folder, "report.html")
    assert not is_whole(folder / "gone", "adapter")
