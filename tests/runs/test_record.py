"""The record of a run, and the check that its inputs and outputs have not changed since."""

from __future__ import annotations

import getpass
import json
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from helpers.runs import RECORDED_FORGET as FORGET
from helpers.runs import RETAIN, UNSEEN, change_weights, flags, recorded_settings, write_rows
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.models.hashes import adapter_sha256, base_sha256, rows_sha256
from unlora.models.load import load_model
from unlora.runs.command import repeat_command, shown_folder
from unlora.runs.record import Clock, shown_name
from unlora.runs.verify import recorded_hashes, verify
from unlora.settings import ModelConfig


def read(folder):
    return json.loads((folder / "run" / "record.json").read_text())


def test_a_run_leaves_a_record_of_what_it_was_made_from(finished):
    record = read(finished)
    assert record["data"]["forget"] == {
        "source": "a local file",
        "name": None,
        "split": None,
        "rows": len(FORGET),
        "sha256": rows_sha256(FORGET),
    }
    assert list(record["data"]) == ["forget", "retain", "holdout", "eval_forget", "eval_retain"]
    assert record["data"]["holdout"]["sha256"] == rows_sha256(UNSEEN)
    assert record["data"]["eval_forget"]["sha256"] == rows_sha256(FORGET)
    assert record["data"]["retain"]["sha256"] == rows_sha256(RETAIN)
    base = {"name": "model", "revision": "main", "sha256": base_sha256(str(finished / "model"))}
    assert record["base"] == base
    assert record["adapter"] == {"sha256": adapter_sha256(finished / "run" / "adapter")}
    assert record["versions"]["torch"] == torch.__version__
    assert record["seeds"] == {"seed": 7, "data_seed": 7, "importance_seed": 42}
    assert record["resumed"] is False


def test_it_has_the_metrics_times_and_memory_of_the_run(finished):
    record, metrics = read(finished), json.loads((finished / "run" / "metrics.json").read_text())
    assert record["metrics"] == {name: metrics[name] for name in ("original", "unlearned", "compression")}
    stages = ["loading", "hashes", "evaluation_original", "importance", "training", "export", "evaluation_unlearned"]
    assert list(record["times"]) == stages
    assert record["times"]["training"] > 0
    weights = sum(file.stat().st_size for file in (finished / "model").glob("*.safetensors"))
    assert weights < record["peak_memory_bytes"]["machine"] < record["hardware"]["memory_bytes"]


def test_it_names_no_place_on_the_machine_nor_its_name(finished):
    text = (finished / "run" / "record.json").read_text()
    assert str(finished) not in text
    assert str(Path.home()) + "/" not in text
    assert str(Path.cwd()) not in text
    words = set(text.replace('"', " ").replace("/", " ").split())
    assert not words & {platform.node(), getpass.getuser()}


@pytest.mark.parametrize(
    ("path", "shown"),
    [("locuslab/TOFU", "locuslab/TOFU"), ("/home/ada/secret.jsonl", "secret.jsonl"), ("..", None), ("tests", "tests")],
)
def test_of_a_path_only_the_last_part_is_shown(path, shown, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert shown_name(path) == (shown or Path(__file__).resolve().parents[3].name)


@pytest.mark.slow
def test_the_recorded_command_repeats_the_run_where_it_was_started(finished, tmp_path, monkeypatch):
    for name in ("model", "data"):
        shutil.copytree(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["unlearn", *flags(Path("model"), Path("data"), Path("runs/first"), seed=7)]) == 0
    record = json.loads((tmp_path / "runs" / "first" / "record.json").read_text())
    assert record["command"] == "unlora unlearn --config runs/first/config.yaml --output_dir runs/first-again"
    _, *argv = shlex.split(record["command"])
    done = subprocess.run([sys.executable, "-m", "unlora", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = (adapter_sha256(tmp_path / "runs" / name / "adapter") for name in ("first", "first-again"))
    assert first == again


def test_the_recorded_command_names_no_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [Path("a b"), tmp_path / "runs" / "a", tmp_path.parent]
    assert [shown_folder(folder) for folder in folders] == ["a b", "runs/a", "RUN"]
    run = Path("a b")
    assert repeat_command(run) == "unlora unlearn --config 'a b/config.yaml' --output_dir 'a b-again'"
    run.mkdir()
    (run / "eval_retrained.json").write_text("{}")
    (run / "config.yaml").write_text("loss: ihl")
    command = "unlora unlearn --config RUN/config.yaml --output_dir RUN-again --retrained RUN/eval_retrained.json"
    assert repeat_command(run, "RUN") == command
    (run / "config.yaml").write_text("retrained: log.json")
    assert repeat_command(run, "RUN") == "unlora unlearn --config RUN/config.yaml --output_dir RUN-again"


@pytest.mark.slow
def test_a_resumed_run_says_so(work, tmp_path):
    argv = flags(work / "model", work / "data", work / "run", **recorded_settings(work), resume_from_checkpoint="true")
    before = read(work)
    assert main(["unlearn", *argv]) == 0
    after = read(work)
    assert after["resumed"] is True
    assert (after["data"], after["base"], after["adapter"]) == (before["data"], before["base"], before["adapter"])


def test_the_clock_notes_each_stage_and_passes_the_result_on():
    clock = Clock()
    assert clock.time("a", max, 1, 2) == 2
    assert clock.time("b", list) == []
    assert list(clock.seconds) == ["a", "b"]


def statuses(capsys, run, *rest):
    code = main(["verify", str(run), "--json", *rest])
    return code, {name: part["status"] for name, part in json.loads(capsys.readouterr().out).items()}


PARTS = ("forget", "retain", "holdout", "eval_forget", "eval_retain", "base", "adapter")
FILES = ("eval_original.json", "eval_unlearned.json", "metrics.json", "samples.jsonl", "forgotten.json")
SAME = dict.fromkeys((*PARTS, *FILES), "unchanged")


def test_nothing_changed(finished, capsys):
    assert statuses(capsys, finished / "run") == (0, SAME)
    assert main(["verify", str(finished / "run")]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [[*item] for item in SAME.items()]


def change_rows(work):
    write_rows(work / "data" / "forget.jsonl", [*FORGET[1:], FORGET[0]])


def change_adapter(work):
    file = work / "run" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 1}))


@pytest.mark.parametrize(
    ("part", "change"), [("forget", change_rows), ("base", change_weights), ("adapter", change_adapter)]
)
def test_what_changed_is_named(work, capsys, part, change):
    change(work)
    seen = {"eval_forget": "changed"} if part == "forget" else {}
    assert statuses(capsys, work / "run") == (1, {**SAME, part: "changed", **seen})


@pytest.mark.parametrize("name", FILES)
def test_evidence_that_was_altered_is_named(work, capsys, name):
    file = work / "run" / name
    file.write_text(file.read_text().replace("1", "2", 1))
    assert statuses(capsys, work / "run") == (1, {**SAME, name: "changed"})
    file.unlink()
    assert statuses(capsys, work / "run") == (1, {**SAME, name: "not found"})


def test_what_is_gone_is_named_and_what_moved_can_be_pointed_at(work, capsys):
    (work / "model").rename(work / "moved")
    (work / "data" / "retain.jsonl").rename(work / "kept.jsonl")
    (work / "data" / "unseen.jsonl").rename(work / "unseen.jsonl")
    gone = dict.fromkeys(("base", "retain", "holdout", "eval_retain"), "not found")
    assert statuses(capsys, work / "run") == (1, {**SAME, **gone})
    main(["verify", str(work / "run")])
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert (
        "model: there is no such folder, and no such model on the Hub; say where it is now with --base" in shown["base"]
    )
    assert "retain_data=" in shown["retain"]
    flags = {"retain": "--retain_data", "holdout": "--holdout_data", "eval_retain": "--eval_data"}
    assert all(shown[part].endswith(f"; say where it is now with {flag})") for part, flag in flags.items())
    now = ["--base", str(work / "moved"), "--retain_data", str(work / "kept.jsonl")]
    now += ["--holdout_data", str(work / "unseen.jsonl")]
    assert statuses(capsys, work / "run", *now) == (1, {**SAME, "eval_retain": "not found"})
    (work / "kept.jsonl").rename(work / "data" / "retain.jsonl")
    (work / "data").rename(work / "sets")
    now = ["--base", str(work / "moved"), "--retain_data", str(work / "sets" / "retain.jsonl")]
    now += ["--holdout_data", str(work / "unseen.jsonl"), "--forget_data", str(work / "sets")]
    assert statuses(capsys, work / "run", *now, "--eval_data", str(work / "sets")) == (0, SAME)


def test_recorded_sets_without_eval_data_in_the_configuration_are_not_found(work):
    config = work / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**values, "eval_data": None}))
    parts = verify(work / "run")
    assert {parts[name]["status"] for name in ("eval_forget", "eval_retain")} == {"not found"}
    assert parts["eval_forget"]["reason"].endswith("has no eval_data; say where it is now with --eval_data")


@pytest.mark.parametrize("text", [None, "{", "{}", '{"data": 1, "base": {}, "adapter": {}}'])
def test_a_folder_without_a_record_is_refused(work, text, capsys):
    record = work / "run" / "record.json"
    record.unlink() if text is None else record.write_text(text)
    assert main(["verify", str(work / "run")]) == 2
    assert "RUN=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_base_without_safetensors_is_not_found(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # otherwise, it would retry for a while
    (tmp_path / "model").mkdir()
    base = verify(finished / "run", base=str(tmp_path / "model"))["base"]
    assert base["status"] == "not found"
    assert "it has no safetensors" in base["reason"]
    assert "no such folder" in verify(finished / "run", base="models/gone")["base"]["reason"]


def test_a_request_on_top_of_a_run_is_refused_where_the_base_has_other_weights(work, capsys):
    change_weights(work)
    write_rows(work / "data" / "second.jsonl", [{**row, "question": f"Is it so? {row['question']}"} for row in FORGET])
    changes = {"on": work / "run", "forget_name": "second"}
    assert main(["unlearn", *flags(work / "model", work / "data", work / "run2", **changes)]) == 2
    error = capsys.readouterr().err
    assert "its weights are not those that the adapter in" in error
    assert not (work / "run2").exists()


def test_a_run_of_an_earlier_version_has_no_record_to_check_its_base_with(work):
    config = ModelConfig(str(work / "model"), on=str(work / "run"))
    (work / "run" / "record.json").unlink()
    load_model(config)
    change_weights(work)
    load_model(replace(config, dtype="float32"))


def test_the_hashes_of_a_record_are_read_by_part(finished):
    found = recorded_hashes(finished / "run")
    assert found.keys() == SAME.keys()
    with pytest.raises(InputError, match=r"record\.json cannot be read"):
        recorded_hashes(finished)
