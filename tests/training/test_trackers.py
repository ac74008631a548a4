"""Trackers: training reports to none by default, and otherwise to those in `report_to`, as in transformers."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from helpers.runs import flags
from unlora.cli import main
from unlora.training import arguments
from unlora.training.arguments import TRACKERS, reporting_problems
from unlora.training.config import UnlearnConfig
from unlora.training.finetune import FinetuneConfig


def test_nothing_is_reported_unless_asked_for(tmp_path):
    for kind in (UnlearnConfig, FinetuneConfig):
        assert kind(output_dir=str(tmp_path)).report_to == []


@pytest.mark.slow
def test_tensorboard_gets_the_losses(model_folder, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert main(["unlearn", *flags(model_folder, data, run, report_to="tensorboard", logging_steps=1)]) == 0
    [file] = run.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    assert {"train/forget_loss", "train/retain_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/forget_loss")] == [1, 2]


def test_wandb_gets_the_losses_without_a_network(model_folder, data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs unlora[trackers]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    argv = flags(model_folder, data, tmp_path / "run", report_to="wandb", run_name="ours", logging_steps=1)
    try:
        assert main(["unlearn", *argv]) == 0
        assert wandb.run.name == "ours"
        summary = dict(wandb.run.summary)
        assert {"train/forget_loss", "train/retain_loss"} <= summary.keys()
        assert summary["train/global_step"] == 2
    finally:
        wandb.finish()
    [file] = tmp_path.rglob("run-*.wandb")
    assert file.stat().st_size > 0
    assert not (tmp_path / "run" / "wandb").exists()


def test_trackio_gets_the_losses_in_a_local_database(model_folder, data, tmp_path):
    pytest.importorskip("trackio", reason="needs unlora[trackers]")
    argv = flags(model_folder, data, tmp_path / "run", report_to="trackio", run_name="ours", logging_steps=1)
    # trackio reads the location of its database when it is imported, so the run needs a process of its own.
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-m", "unlora", "unlearn", *argv], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    [file] = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        rows = [json.loads(text) for (text,) in database.execute("select metrics from metrics where run_name = 'ours'")]
    assert [row["train/global_step"] for row in rows if "train/forget_loss" in row] == [1, 2]


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_loaded(model_folder, data, tmp_path, capsys):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", report_to="tensorbord")]) == 2
    assert "report_to='tensorbord'" in (error := capsys.readouterr().err)
    assert "did you mean 'tensorboard'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named_with_how_to_install_it(name, monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda module: None)
    [problem] = reporting_problems([name])
    assert str(problem) == f"report_to={name!r}: it is not installed. Fix: install it: pip install {name}."


@pytest.mark.parametrize("nothing", [None, [], "none", ["none"], "all"])
def test_what_needs_no_tracker_is_no_problem(nothing):
    assert reporting_problems(nothing) == []
