"""A Trainer whose checkpoints appear whole or not at all, and hold safetensors only, and its arguments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from unlora.common.errors import Problem, raise_if, unknown_name
from unlora.common.progress import bar
from unlora.training.tensor_files import load_state, save_state

# What shards a model that trains, and where `accelerate launch` says so.
SHARDING = {"deepspeed": "ACCELERATE_USE_DEEPSPEED", "fsdp": "ACCELERATE_USE_FSDP"}

# The trackers that we test. The others of transformers check for themselves whether they are installed.
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass
class SafeArguments(TrainingArguments):
    """transformers' TrainingArguments, as far as `SafeTrainer` takes them.

    Raises:
        InputError: for models that are sharded as they train (DeepSpeed, FSDP), whose checkpoints are written by other
            means.
    """

    def __post_init__(self) -> None:
        reason = "the model would be sharded only when training starts, and its checkpoints would not be safetensors"
        fix = "use one whole copy of the model per process, or spread a frozen base: shard_base='fsdp' or a ZeRO-3 file"
        raise_if(
            Problem(name, getattr(self, name) or f"{variable}=true", reason, fix)
            for name, variable in SHARDING.items()
            if getattr(self, name) or os.environ.get(variable) == "true"
        )
        super().__post_init__()

    def problems(self) -> list[Problem]:
        """What is wrong with the settings, before anything is loaded."""
        return [*reporting_problems(self.report_to), *kernel_problems(self.use_liger_kernel, self.use_cpu)]


class SafeTrainer(Trainer):
    """transformers' Trainer without pickle: model, optimiser, scheduler and random state are safetensors.

    A run that was killed at any moment resumes from its last complete checkpoint to the result it would have had. One
    that is interrupted (Ctrl-C) finishes its step and leaves a checkpoint of it.
    """

    _staging: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            self.args.dataloader_pin_memory = False  # there is nothing to pin for, and torch warns at every epoch
        for printer in (ProgressCallback, PrinterCallback):  # they write the log to stdout, where results go
            self.remove_callback(printer)
        if not self.args.disable_tqdm:
            self.add_callback(TrainingBar())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer; raises `KeyboardInterrupt` after the checkpoint where it was interrupted."""
        interrupt = SaveOnInterrupt()
        if self.args.world_size > 1 or threading.current_thread() is not threading.main_thread():
            return super().train(*args, **kwargs)  # processes would not stop at the same step
        self.add_callback(interrupt)
        with interrupt:
            result = super().train(*args, **kwargs)
        self.remove_callback(interrupt)
        return result

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint under another name and renames it when it is complete."""
        run, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Old checkpoints may go only when the new one is in place, so not in there.
        self._staging, self.args.save_total_limit = str(run / ".partial"), None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(run / name, ignore_errors=True)
            os.replace(run / ".partial" / name, run / name)
            shutil.rmtree(run / ".partial")
            rotate_checkpoints(output_dir=str(run), save_total_limit=limit)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self.args.output_dir
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.lr_scheduler.state_dict()}
            save_state(Path(output_dir) / "optimizer.safetensors", state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = load_state(Path(checkpoint) / "optimizer.safetensors")
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])

    def _save_scaler(self, output_dir: str) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and self.args.should_save:
            save_state(Path(output_dir) / "scaler.safetensors", scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and checkpoint is not None:
            scaler.load_state_dict(load_state(Path(checkpoint) / "scaler.safetensors"))

    def _random_file(self, folder: str) -> Path:
        return Path(folder) / f"random_state_{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        save_state(self._random_file(output_dir), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = load_state(self._random_file(checkpoint))
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


class TrainingBar(TrainerCallback):
    """A progress bar over the optimiser steps, named after the run if that has a name, with the last logged losses."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts it, where a resumed run goes on."""
        if state.is_world_process_zero:
            name = f"training {args.run_name}" if args.run_name else "training"
            self.bar = bar(total=state.max_steps, initial=state.global_step, desc=name, unit=" steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        if state.is_world_process_zero:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows the losses."""
        losses = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name.endswith("loss")}
        if state.is_world_process_zero and losses:
            self.bar.set_postfix(losses, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends it."""
        if state.is_world_process_zero:
            self.bar.close()


class SaveOnInterrupt(TrainerCallback):
    """Within it a first Ctrl-C lets the step end, and has it saved; a second one stops at once.

    Raises:
        KeyboardInterrupt: at the end, where there was one.
    """

    asked = False

    def __enter__(self) -> SaveOnInterrupt:
        self.previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        signal.signal(signal.SIGINT, self.previous)
        if self.asked and kind is None:
            raise KeyboardInterrupt

    def _ask(self, *signal_and_frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.previous)
        print("interrupted: this step ends and is saved; Ctrl-C again stops at once", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves and stops, if asked to."""
        if self.asked:
            control.should_save = control.should_training_stop = True


def kernel_problems(use_liger_kernel: bool, use_cpu: bool) -> list[Problem]:
    """What stands against Liger's kernels, if they are asked for."""
    import torch

    if not use_liger_kernel:
        return []
    if use_cpu or not torch.accelerator.is_available():
        return [Problem("use_liger_kernel", True, "its kernels run on a GPU, and there is none", "leave it out")]
    if find_spec("liger_kernel") is None:
        return [Problem("use_liger_kernel", True, "it is not installed", "install it: pip install 'unlora[liger]'")]
    return []


def reporting_problems(report_to: Sequence[str] | str | None) -> list[Problem]:
    """Trackers of `report_to` that are unknown or not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = [report_to] if isinstance(report_to, str) else report_to or []
    problems = [
        unknown_name("report_to", name, [*INTEGRATION_TO_CALLBACK, "none"])
        for name in names
        if name not in (*INTEGRATION_TO_CALLBACK, "none", "all")
    ]
    missing = [name for name in names if name in TRACKERS and find_spec(name) is None]
    return problems + [
        Problem("report_to", name, "it is not installed", f"install it: pip install {name}") for name in missing
    ]
