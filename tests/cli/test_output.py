"""The output of commands: tables and a path, the path alone, or one JSON document."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from helpers.runs import flags
from unlora.cli import interrupted, main
from unlora.cli.output import Answer, Mode, output_mode


def test_the_flags_of_output_may_stand_anywhere():
    assert output_mode(["--quiet", "run", "--json", "--r", "8"]) == (Mode(True, True), ["run", "--r", "8"])
    assert output_mode(["run"]) == (Mode(False, False), ["run"])


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        (Mode(False, False), "a table\nrun/adapter\n"),
        (Mode(True, False), "run/adapter\n"),
        (Mode(False, True), '{\n  "path": "run/adapter",\n  "metric": 0.5\n}\n'),
        (Mode(True, True), '{\n  "path": "run/adapter",\n  "metric": 0.5\n}\n'),
    ],
)
def test_a_result_is_told_in_one_of_three_ways(mode, shown, capsys):
    mode.tell(Answer({"metric": 0.5}, lambda: print("a table"), "run/adapter"))
    assert capsys.readouterr().out == shown


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m unlora ls | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_what_is_printed_at_work_stands_in_no_result(capsys):
    for mode, expected in ((Mode(True, False), ("", "")), (Mode(False, True), ("", "work\nlog\n"))):
        with mode.running():
            print("work")
            print("log", file=sys.stderr)
        assert tuple(capsys.readouterr()) == expected


@pytest.mark.slow
def test_unlearn_prints_one_json_document(model_folder, data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["unlearn", *flags(model_folder, data, run, disable_tqdm=False), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("path") == str(run / "adapter")
    assert document == json.loads((run / "metrics.json").read_text())


@pytest.mark.slow
def test_unlearn_is_quiet_but_for_the_path_and_errors(model_folder, data, tmp_path, capfd):
    run = tmp_path / "run"
    argv = flags(model_folder, data, run, disable_tqdm=False)
    assert main(["unlearn", "--quiet", *argv]) == 0
    assert capfd.readouterr() == (f"{run / 'adapter'}\n", "")
    assert main(["unlearn", "--quiet", *argv]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "it is already in use" in shown.err


def test_training_writes_nothing_but_results_to_stdout(model_folder, data, tmp_path, capsys):
    argv = ["--train_data", data / "retain.jsonl", "--output_dir", tmp_path / "t", "--max_steps", 2, "--use_cpu", True]
    argv += ["--model_name_or_path", model_folder, "--logging_steps", 1]
    assert main(["finetune", *map(str, argv)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 't'}\n"


def test_lists_are_json_too(capsys):
    assert main(["ls", "losses", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["losses"]
    assert "ihl" in {row["name"] for row in rows}


def test_a_wrong_command_is_refused_and_json_prints_nothing_then(capsys):
    assert main(["unlern", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "did you mean 'unlearn'" in shown.err


@pytest.mark.parametrize(
    ("command", "argv", "told"),
    [
        ("unlearn", ["--loss", "a b"], "continue with: unlora unlearn --loss 'a b' --resume_from_checkpoint true"),
        ("unlearn", ["--resume_from_checkpoint", "true"], "unlora unlearn --resume_from_checkpoint true"),
        ("bench", ["persona"], "finished work is kept, continue with: unlora bench persona"),
        ("evaluate", ["--on", "run"], "interrupted; start again with: unlora evaluate --on run"),
    ],
)
def test_an_interrupt_says_how_to_go_on(command, argv, told):
    assert interrupted(command, argv).endswith(told)


def test_the_command_runs_as_an_installed_program():
    program = Path(sysconfig.get_path("scripts")) / "unlora"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, env={**os.environ})
    assert "quickstart" in shown.stdout
    wrong = subprocess.run([program, "unlern"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "did you mean 'unlearn'" in wrong.stderr


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(capsys, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("out of\nluck \x1b[2J" + "x" * 5000)

    monkeypatch.setattr("unlora.cli.ls.run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["ls"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line != "loading libraries ..."]
    [saved] = tmp_path.iterdir()
    assert line.startswith("error: RuntimeError: out of luck ␛[2Jxx")
    assert len(line) < 1000
    assert str(saved) in line
    assert "in fail" in saved.read_text()
