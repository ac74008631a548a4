"""Code that comes with a model only runs if the user allows it on the command line. No folder or file can allow it."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from helpers.attacked import FORGET, unlearn
from helpers.models import save_tiny_llama
from unlora.bench.cells import consent
from unlora.cli import main
from unlora.cli.arguments import read
from unlora.cli.unlearn import SETTINGS
from unlora.common.errors import InputError
from unlora.runs.command import repeat_command
from unlora.settings import ModelConfig

# A configuration class that comes with a model. It creates a file when it is imported.
CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path(__file__).with_name("ran").touch()
Path({ran!r}).touch()

class Own(PretrainedConfig):
    model_type = "own"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consent")
    return unlearn(folder, save_tiny_llama(folder / "model"), FORGET)


@pytest.fixture
def hostile(run, tmp_path):
    """A folder with a run whose model has code and whose config.yaml allows it, and the file that the code creates."""
    folder, ran = shutil.copytree(run.parent, tmp_path / "stranger"), tmp_path / "ran"
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "own.py").write_text(CODE.format(ran=str(ran)))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    settings = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    settings |= {"trust_remote_code": True, "model_name_or_path": str(folder / "model")}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder, ran


EVALUATED = ("--eval_data", "DATA", "--eval_forget_name", "forget", "--eval_retain_name", "retain")
EVALUATED += ("--eval_real_authors_name", "none", "--eval_world_facts_name", "none")
FORGET_DATA = ("--forget_data", "DATA/forget.jsonl")
COMMANDS = {
    "attack": ["attack", "RUN"],
    "chat": ["chat", "RUN", "--port", "0"],
    "export": ["export", "RUN", "--output_dir", "OUT"],
    "merge": ["export", "RUN", "--output_dir", "OUT", "--merge", "true"],
    "evaluate": ["evaluate", "--on", "RUN", "--log", "OUT", *EVALUATED],
    "membership": ["membership", "--on", "RUN", "--log", "OUT", *FORGET_DATA, "--holdout_data", "DATA/retain.jsonl"],
    "unlearn": ["unlearn", "--on", "RUN", "--output_dir", "OUT", *FORGET_DATA, "--retain_data", "DATA/retain.jsonl"],
    "its own settings": ["unlearn", "--config", "RUN/config.yaml", "--output_dir", "OUT", "--use_cpu", "true"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_code_of_a_run_that_asks_for_it(hostile, tmp_path, command, capsys):
    folder, ran = hostile
    places = {"RUN": str(folder / "run"), "DATA": str(folder), "OUT": str(tmp_path / "out")}
    argv = COMMANDS[command]
    for name, place in places.items():
        argv = [part.replace(name, place) for part in argv]
    code = main(argv)
    assert not ran.exists()
    if command == "export":  # the adapter needs none of the model's code
        assert code == 0
        assert not list((tmp_path / "out").glob("*.py"))
    else:
        assert code == 2
        assert "--trust_remote_code" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_verify_and_report_run_nothing_either(hostile):
    folder, ran = hostile
    for command in ("verify", "report"):
        main([command, str(folder / "run")])
    assert not ran.exists()


def test_the_user_s_own_flag_allows_it(hostile, tmp_path):
    folder, ran = hostile
    main(["export", str(folder / "run"), "--output_dir", str(tmp_path / "out"), "--trust_remote_code", "true"])
    assert ran.exists()


def test_a_kernel_on_the_hub_is_code_too(hostile, capsys):
    folder, _ = hostile
    config = folder / "run" / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "attn_implementation": "evil/kernel"}))
    assert main(["attack", str(folder / "run")]) == 2
    assert "attn_implementation='evil/kernel': it is code from the Hub" in capsys.readouterr().err
    [problem] = ModelConfig("m", attn_implementation="evil/kernel").problems()
    assert problem.argument == "attn_implementation"
    assert ModelConfig("m", attn_implementation="evil/kernel", trust_remote_code=True).problems() == []


def test_a_configuration_and_the_flag_together_allow_it(tmp_path, run):
    file = tmp_path / "a.yaml"
    file.write_text(
        f"trust_remote_code: true\nmodel_name_or_path: {run.parent / 'model'}\n"
        "forget_data: f\nretain_data: r\noutput_dir: o\n"
    )
    with pytest.raises(InputError, match=r"only you can allow this\..*add --trust_remote_code true if you do"):
        read(SETTINGS, ["--config", str(file)], "unlearn")
    assert read(SETTINGS, ["--config", str(file), "--trust_remote_code"], "unlearn").defaults["trust_remote_code"]


def test_the_cells_of_a_bench_hand_the_user_s_consent_on(hostile, run, tmp_path):
    assert consent(hostile[0] / "run" / "config.yaml") == ["--trust_remote_code", "true"]
    for path in (run / "config.yaml", tmp_path / "none.yaml"):
        assert consent(path) == []


def test_the_command_that_repeats_a_run_says_what_it_allows(hostile, run):
    assert "trust_remote_code" not in repeat_command(run)
    assert repeat_command(hostile[0] / "run").endswith("--trust_remote_code true")
