"""A run that is interrupted with Ctrl-C can be resumed, and its last message says how."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from helpers.runs import FORGET, RETAIN, flags, write_rows
from unlora.cli import main
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.runs.stages import STAGES
from unlora.training.checkpoints import SafeTrainer


class InterruptAt(TrainerCallback):
    """Send SIGINT the given number of times in the middle of a training step."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def trainer(tiny_model, tokenizer, folder, callbacks=()):
    args = TrainingArguments(str(folder), max_steps=4, save_strategy="no", use_cpu=True, learning_rate=1e-2, seed=1)
    return SafeTrainer(
        model=tiny_model("llama"),
        args=args,
        train_dataset=encode_records(RETAIN, TextFormat(tokenizer)),
        data_collator=lambda rows: pad_batch(rows, 0),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def weights(trained):
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


def test_the_step_ends_and_is_saved_and_training_goes_on_from_there(tiny_model, tokenizer, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    stopped = trainer(tiny_model, tokenizer, tmp_path / "run", [InterruptAt(2)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this step, with a checkpoint" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
    resumed = trainer(tiny_model, tokenizer, tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(tiny_model, tokenizer, tmp_path / "whole")
    whole.train()
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.usefixtures("heard_interrupts")
def test_a_second_interrupt_stops_at_once(tiny_model, tokenizer, tmp_path):
    stopped = trainer(tiny_model, tokenizer, tmp_path / "run", [InterruptAt(2, times=2)])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert stopped.state.global_step == 1
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def interrupted_when_there_is(file, argv):
    """Run a command in a process, interrupt it as soon as a folder or the file of a stage exists, and return stderr."""

    def is_there():
        return file.exists() and (file.is_dir() or f'"{file.name}"' in (file.parent / STAGES).read_text())

    command = [sys.executable, "-m", "unlora", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not is_there() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate()
    assert process.returncode == 130, error
    assert out == ""
    return error


SETTINGS = {"max_steps": 40, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def whole_adapter(model_folder, tmp_path_factory):
    """Return the adapter of an uninterrupted run, which needs no checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    write_rows(folder / "data" / "forget.jsonl", FORGET)
    write_rows(folder / "data" / "retain.jsonl", RETAIN)
    settings = {**SETTINGS, "save_strategy": "no"}
    assert main(["unlearn", *flags(model_folder, folder / "data", folder / "run", **settings)]) == 0
    return load_file(folder / "run" / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["eval_original.json", "checkpoint-2"])
@pytest.mark.usefixtures("heard_interrupts")
def test_a_run_that_was_interrupted_goes_on_with_the_command_it_names(
    model_folder, data, whole_adapter, tmp_path, file
):
    run = tmp_path / "a run"
    error = interrupted_when_there_is(run / file, ["unlearn", *flags(model_folder, data, run, **SETTINGS)])
    assert not (run / "adapter").exists()
    told = error.splitlines()[-1].partition("continue with: ")[2]
    program, *argv = shlex.split(told)
    assert program == "unlora"
    evaluated = (run / "eval_original.json").stat().st_mtime_ns
    assert main([*argv, "--save_strategy", "no"]) == 0
    assert (run / "eval_original.json").stat().st_mtime_ns == evaluated
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(value, whole_adapter[name]) for name, value in adapter.items())
