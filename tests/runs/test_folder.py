"""Reading the settings of a run from a folder other than the one in which it was started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from unlora.runs.folder import located_settings


@pytest.fixture
def run(tmp_path):
    """Return the folder of a run that was started in `tmp_path / "there"` with relative paths."""
    folder = tmp_path / "there" / "runs" / "one"
    folder.mkdir(parents=True)
    settings = {"output_dir": "runs/one", "forget_data": "f.jsonl", "eval_data": "org/sets", "model_name_or_path": "m"}
    settings["retain_data"] = "x" * 5000  # too long for the name of a file
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "there" / "f.jsonl").touch()
    (tmp_path / "there" / "m").mkdir()
    (tmp_path / "here" / "m").mkdir(parents=True)
    return folder


def test_paths_lead_to_the_files_from_any_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "here")
    found = located_settings(run)
    assert Path(found["forget_data"]).samefile(tmp_path / "there" / "f.jsonl")
    assert not Path(found["forget_data"]).is_absolute()  # it may be shown, and must not reveal the user's folders
    assert found["model_name_or_path"] == "m"  # the current folder takes precedence
    assert found["eval_data"] == "org/sets"  # there is no such folder, so it names a dataset on the Hub
    assert found["retain_data"] == "x" * 5000


def test_paths_stay_as_they_are_where_the_run_was_started_and_in_a_run_that_was_moved(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "there")
    assert located_settings("runs/one")["forget_data"] == "f.jsonl"
    monkeypatch.chdir(tmp_path / "here")
    moved = run.rename(tmp_path / "moved")
    assert located_settings(moved)["forget_data"] == "f.jsonl"
