"""A run that was stopped at any moment resumes to the result of an uninterrupted run. Other input is refused.

`python -m experiments.stops` stops runs at every file operation. These tests choose a few, which cover each kind of
file.
"""

from __future__ import annotations

import os
import signal
import time
from functools import cache

import pytest
from experiments._processes import become

from experiments import stops
from helpers.runs import RECORDED_FORGET, change_weights, flags, recorded_settings, write_rows
from unlora.cli import main
from unlora.runs.stages import STAGES

pytestmark = pytest.mark.slow
# Where to stop each command, as a fraction of its file operations. Together, these cover the first file, importance,
# checkpoints, adapter, log of answers, metrics and the last files.
PLACES = {"unlearn": (0.02, 0.15, 0.55, 0.8, 0.95), "finetune": (0.4, 0.97), "bench": (0.5,)}
KILLS = [(command, place) for command, places in PLACES.items() for place in places]


@pytest.fixture(scope="module")
def known(model_folder, tmp_path_factory):
    return stops.cases(tmp_path_factory.mktemp("stops"), model_folder)


@pytest.fixture(scope="module")
def sweep(known, tmp_path_factory):
    """Return a function that runs a command without interruption, once, and returns its `Sweep`."""
    results = tmp_path_factory.mktemp("results") / "results.jsonl"
    return cache(lambda command: stops.Sweep(known[command], results))


@pytest.mark.parametrize(("command", "place"), KILLS)
def test_a_killed_run_goes_on_to_the_same_result(sweep, command, place):
    found = sweep(command)
    assert len(found.states) > 20
    assert found.fault("kill", round(place * len(found.states))) is None


def test_what_a_kill_leaves_is_what_was_there_before_the_operation(sweep):
    assert sweep("finetune").copies_are_kills(2) == []


@pytest.mark.parametrize(("fault", "place"), [("full disk", 0.5), ("read-only", 0.9)])
def test_a_run_whose_disk_fails_says_so_and_goes_on_later(sweep, fault, place):
    found = sweep("unlearn")
    assert found.fault(fault, round(place * len(found.states))) is None


def files(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def change_rows(work):
    write_rows(work / "data" / "forget.jsonl", [*RECORDED_FORGET[1:], RECORDED_FORGET[0]])


def change_tokenizer(work):
    path = work / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true'))


@pytest.mark.parametrize(
    ("changes", "change", "told"),
    [
        ({"learning_rate": 0.5, "loss": "npo", "ds_size": 3}, None, ("learning_rate=0.5", "loss='npo'", "ds_size=3")),
        ({}, change_weights, ("model_name_or_path=",)),
        ({}, change_rows, ("forget_data=", "eval_data=")),
        ({}, change_tokenizer, ("model_name_or_path=",)),
    ],
)
def test_a_run_is_not_resumed_with_anything_else_and_nothing_is_written(work, capsys, changes, change, told):
    if change is not None:
        change(work)
    before = files(work / "run")
    settings = {**recorded_settings(work), **changes, "resume_from_checkpoint": "true"}
    assert main(["unlearn", *flags(work / "model", work / "data", work / "run", **settings)]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in told)
    assert str(work / "run") in error
    assert files(work / "run") == before


def test_two_runs_do_not_write_into_one_folder(model_folder, data, tmp_path, capsys):
    argv = ["unlearn", *flags(model_folder, data, tmp_path / "run", max_steps=10**6)]
    first = os.fork()
    if first == 0:
        become(argv, os.open(os.devnull, os.O_WRONLY))
    try:
        stages = tmp_path / "run" / STAGES
        while not (stages.exists() and '"importance.safetensors"' in stages.read_text()):  # then it only trains
            assert os.waitpid(first, os.WNOHANG) == (0, 0)
            time.sleep(0.05)
        before = files(tmp_path / "run")
        assert main([*argv, "--resume_from_checkpoint", "true"]) == 2
        assert "another process is writing to it" in capsys.readouterr().err
        assert before.items() <= files(tmp_path / "run").items()
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
