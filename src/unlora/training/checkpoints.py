"""A Trainer whose checkpoints appear whole or not at all, and contain safetensors and JSON only."""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, rotate_checkpoints

from unlora.training.callbacks import SaveOnInterrupt, TrainingBar
from unlora.training.tensor_files import load_state, save_state


class SafeTrainer(Trainer):
    """transformers' Trainer without pickle: the optimiser, scheduler and random states are safetensors too.

    A run that is killed at any moment resumes from its last complete checkpoint and ends with the result it would have
    had. A run that is interrupted (Ctrl-C) finishes its current step and saves a checkpoint of it.
    """

    _staging: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            self.args.dataloader_pin_memory = False  # pinning has no use here, and torch warns about it at every epoch
        for printer in (ProgressCallback, PrinterCallback):  # they print the log to stdout, which is for results
            self.remove_callback(printer)
        if not self.args.disable_tqdm:
            self.add_callback(TrainingBar())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers' Trainer does; an interrupt raises `KeyboardInterrupt` after a checkpoint was saved."""
        # Several processes would not stop at the same step, and only the main thread may set a signal handler.
        if self.args.world_size > 1 or threading.current_thread() is not threading.main_thread():
            return super().train(*args, **kwargs)
        interrupt = SaveOnInterrupt()
        self.add_callback(interrupt)
        with interrupt:
            result = super().train(*args, **kwargs)
        self.remove_callback(interrupt)
        return result

    def _get_output_dir(self, trial: dict[str, Any] | None) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: dict[str, Any] | None) -> None:
        """Write the checkpoint into a staging folder, and move it to its place when it is complete."""
        run, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Without a limit the superclass deletes nothing: old checkpoints must stay until the new one is in place.
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
        # The superclass would also pickle the training arguments.
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

    def _random_state_file(self, folder: str) -> Path:
        return Path(folder) / f"random_state_{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        save_state(self._random_state_file(output_dir), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = load_state(self._random_state_file(checkpoint))
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """Return the checkpoint folder that `resume_from_checkpoint` means, or None to start from the beginning.

    The command line passes a string. "true" means the last complete checkpoint in `output_dir`; there is none if the
    run was killed before its first checkpoint.
    """
    choice = str(args.resume_from_checkpoint or "false")
    if choice.lower() == "true":
        return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    return None if choice.lower() == "false" else choice
