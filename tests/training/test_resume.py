"""A run that resumes from any of its checkpoints ends with the weights and the log of an uninterrupted run."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import TrainingArguments

from helpers.runs import RETAIN
from helpers.trainer import adapter_state, make_trainer
from unlora.common.errors import InputError
from unlora.data import TextFormat, encode_records
from unlora.training.checkpoints import checkpoint_to_resume
from unlora.training.finetune import FinetuneConfig, finetune

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
# An epoch has two updates, so `max_steps=3` ends training in the middle of the second epoch.
ENDS = {"with an epoch": {"num_train_epochs": 2}, "within an epoch": {"max_steps": 3}}
LOGS = {"every other step": {"logging_steps": 2}, "every epoch": {"logging_strategy": "epoch"}}


def log_of(trainer):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in trainer.state.log_history]


@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("end", ENDS)
def test_a_resumed_training_is_the_whole_training(tiny_model, tokenizer, tmp_path, end, log):
    settings = {"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant", **ENDS[end], **LOGS[log]}
    whole = make_trainer(tiny_model, tokenizer, tmp_path / "whole", **settings)
    whole.train()
    steps = whole.state.global_step
    assert steps == (4 if end == "with an epoch" else 3)
    for step in range(1, steps + 1):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = make_trainer(tiny_model, tokenizer, folder, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == steps
        assert log_of(resumed) == log_of(whole)
        assert resumed._retain_limit == whole._retain_limit
        expected = adapter_state(whole.model)
        assert all(torch.equal(value, expected[name]) for name, value in adapter_state(resumed.model).items())


def test_a_checkpoint_at_the_last_step_allows_more_steps_later(tiny_model, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(tiny_model, tokenizer, tmp_path, max_steps=3, **settings).train()
    longer = make_trainer(tiny_model, tokenizer, tmp_path, max_steps=5, **settings)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 5


def test_old_checkpoints_are_deleted_even_if_the_run_was_killed_before(tiny_model, tokenizer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    make_trainer(tiny_model, tokenizer, tmp_path, **settings).train()
    make_trainer(tiny_model, tokenizer, tmp_path, save_total_limit=1, **settings).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_checkpoint_without_the_state_of_the_optimiser_is_refused(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(InputError, match=r"it has no trainer_state\.json, optimizer\.safetensors"):
        checkpoint_to_resume(args, "true")


def test_a_damaged_checkpoint_is_refused_if_named_and_otherwise_deleted(tiny_model, tokenizer, tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = make_trainer(tiny_model, tokenizer, tmp_path, **settings)
    whole.train()
    checkpoints = [tmp_path / f"checkpoint-{step}" for step in (1, 2, 3)]
    damages = {
        "trainer_state.json": lambda content: b"",
        "optimizer.safetensors": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
        "hashes.json": lambda content: content[:-20],
    }
    for checkpoint, (name, damage) in zip(checkpoints, damages.items(), strict=True):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(damage(content))
        with pytest.raises(InputError, match=f"its {name} is not what was written"):
            checkpoint_to_resume(whole.args, str(checkpoint))
        if checkpoint == checkpoints[0]:
            (checkpoint / name).write_bytes(content)
    resumed = make_trainer(tiny_model, tokenizer, tmp_path, **settings)
    resumed.train(resume_from_checkpoint="true")
    assert [record.args[1] for record in caplog.records if "deleting" in record.msg] == [
        "hashes.json",
        "optimizer.safetensors",
    ]
    assert log_of(resumed) == log_of(whole)
    expected = adapter_state(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in adapter_state(resumed.model).items())
    assert checkpoint_to_resume(whole.args, True) == str(checkpoints[2])


def test_fine_tuning_that_is_finished_is_not_repeated_and_other_input_is_refused(tiny_model, tokenizer, tmp_path):
    def tune(model, rows, **changes):
        settings = {"max_steps": 3, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, **changes}
        args = FinetuneConfig(str(tmp_path / "run"), **settings)
        return finetune(model, tokenizer, encode_records(rows, TextFormat(tokenizer)), args, args.lora())

    tune(tiny_model("llama"), RETAIN)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.safetensors")}
    assert len(files) == 1
    tune(tiny_model("llama"), RETAIN, resume_from_checkpoint="true")
    assert files == {path: path.stat().st_mtime_ns for path in files}
    others = {
        r"learning_rate=1\.0: .*started with the default": (tiny_model("llama"), RETAIN, {"learning_rate": 1.0}),
        "model_name_or_path=.*its content": (tiny_model("llama", seed=1), RETAIN, {}),
        "train_data=.*its content": (tiny_model("llama"), RETAIN[1:], {}),
    }
    for told, (model, rows, changes) in others.items():
        with pytest.raises(InputError, match=told):
            tune(model, rows, resume_from_checkpoint="true", **changes)
    assert files == {path: path.stat().st_mtime_ns for path in files}
