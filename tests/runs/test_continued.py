"""Which settings a request inherits from the run that it continues."""

from __future__ import annotations

import json

import pytest
import yaml

from unlora.cli.arguments import read
from unlora.cli.unlearn import REQUEST
from unlora.common.errors import InputError
from unlora.runs.folder import continued_settings

SAVED = {
    "model_name_or_path": "model",
    "trust_remote_code": True,
    "prompt_format": "base",
    "forget_data": "f.jsonl",
    "retain_name": "retain",
    "holdout_data": "u.jsonl",
    "eval_data": "sets",
    "eval_holdout_name": "unseen",
    "stop_every": 2,
    "ds_size": 20,
    "eval_batch_size": None,
    "init": "lora",
    "loss": "npo",
    "loss_kwargs": {"beta": 0.2},
    "learning_rate": 3e-4,
    "num_train_epochs": 9.0,
    "output_dir": "run1",
}


def run_in(folder):
    (folder / "config.yaml").write_text(yaml.safe_dump(SAVED))
    return str(folder)


def test_all_settings_are_inherited_except_data_paths_and_trust(tmp_path):
    names = {"model_name_or_path", "prompt_format", "ds_size", "init", "loss", "loss_kwargs", "learning_rate"}
    assert continued_settings(run_in(tmp_path)).keys() == names | {"num_train_epochs"}
    assert "stop_every" in continued_settings(run_in(tmp_path), {"holdout_data"})


def test_a_truncated_configuration_is_refused(tmp_path):
    """What remains of the file is still valid YAML, so only the missing settings reveal the truncation."""
    run = run_in(tmp_path)
    stages = {"settings": {"loss": "npo", "learning_rate": 3e-4}, "contents": {}, "stages": {}}
    (tmp_path / "stages.json").write_text(json.dumps(stages))
    assert continued_settings(run)
    whole = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(whole[: whole.index("learning_rate")])
    with pytest.raises(InputError, match=r"on=.*lacks settings that the run was started with: learning_rate"):
        continued_settings(run)


def test_settings_of_the_first_loss_or_start_are_not_inherited_with_another(tmp_path):
    found = continued_settings(run_in(tmp_path), {"loss"})
    assert not found.keys() & {"loss", "loss_kwargs", "num_train_epochs", "learning_rate", "init"}
    assert found["prompt_format"] == "base"
    assert "learning_rate" not in continued_settings(run_in(tmp_path), {"init"})
    assert "num_train_epochs" not in continued_settings(run_in(tmp_path), {"max_steps"})


def test_flags_override_inherited_settings(tmp_path):
    argv = ["--on", run_in(tmp_path), "--learning_rate", "1e-3", "--max_steps", "5", "--output_dir", "run2"]
    argv += ["--forget_data", "second.jsonl", "--retain_data", "r.jsonl"]
    values = read(REQUEST, argv, "unlearn").defaults
    assert values["loss"] == "npo"
    assert not values.keys() & {"learning_rate", "num_train_epochs", "forget_data", "holdout_data"}
