"""A Trainer that writes checkpoints atomically, and only as safetensors and JSON."""

from __future__ import annotations

import logging
import os
import random
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from unlora.common.distributed import on_main
from unlora.common.errors import InputError, Problem
from unlora.common.files import flush, new_folder, remove, replace_folder, unfinished, write_json
from unlora.common.reading import read_json
from unlora.models.hashes import file_sha256
from unlora.training.callbacks import AtTrainBegin, CheckpointTiming, SavedCallback, TrainingBar, TrainingLines
from unlora.training.tensor_files import load_state, save_state

logger = logging.getLogger(__name__)
_OPTIMIZER = "optimizer.safetensors"
# The file in a checkpoint with the hashes of all other files.
_HASHES = "hashes.json"


class SafeTrainer(Trainer):
    """transformers' Trainer without pickle: the optimiser, scheduler and random states are safetensors too.

    A run that is killed at any time resumes from its last complete checkpoint, and ends with the same result and log as
    without interruption. A run that is interrupted (Ctrl-C) finishes its current step and saves a checkpoint. Callbacks
    with `save` and `load` store their state in every checkpoint.
    """

    _staging: str | None = None
    # The saved `_progress` of the checkpoint, from loading it until training begins.
    _resumed: dict[str, Any] | None = None
    _over = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            self.args.dataloader_pin_memory = False  # useless on a CPU, and torch warns about it in every epoch
        # These callbacks print the log to stdout, which is for results. The last one differs in a notebook.
        for printer in (ProgressCallback, PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(printer)
        self.add_callback(TrainingLines() if self.args.disable_tqdm else TrainingBar())
        self.add_callback(AtTrainBegin(self._restore_progress))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train like transformers' Trainer. An interrupt raises `KeyboardInterrupt` after saving a checkpoint.

        Args:
            resume_from_checkpoint: true for the last complete checkpoint in `output_dir`, or a checkpoint folder.
            *args: as in the superclass.
            **kwargs: as in the superclass.

        Raises:
            InputError: the checkpoint is incomplete or damaged.
        """
        checkpoint = on_main(lambda: checkpoint_to_resume(self.args, resume_from_checkpoint))
        alone = self.args.world_size == 1 and threading.current_thread() is threading.main_thread()
        self._timing = CheckpointTiming(handles_interrupts=alone)
        self.add_callback(self._timing)
        with self._timing:
            result = super().train(checkpoint, *args, **kwargs)
        self.remove_callback(self._timing)
        return result

    def _run_epoch(self, *, epoch: int, train_dataloader: DataLoader, **kwargs: Any) -> None:
        # If training ended within an epoch, the superclass would do one more step after resuming from its checkpoint.
        if self._over:
            self.control.should_training_stop = True
            return
        # With several processes, the superclass does not set the epoch of the sampler when it resumes within an epoch,
        # so that this epoch would have the order of the first one.
        sampler = _sampler_in(train_dataloader)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the superclass's estimate without counting the parameters of all modules in every step."""
        return 6 * int(inputs["input_ids"].numel()) * self._parameters

    @cached_property
    def _parameters(self) -> int:
        return int(self.model.num_parameters(exclude_embeddings=True))

    def _progress(self) -> dict[str, Any]:
        """Return the state that this process needs to continue the log, and whether training is over."""
        return {
            "loss": self._tr_loss,
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "over": self._timing.over,
            "max_steps": self.state.max_steps,
        }

    def _restore_progress(self) -> None:
        """Restore the state that `_progress` saved, because transformers resets its sums when training begins."""
        saved, self._resumed = self._resumed, None
        self._over = False
        if saved is None:
            return
        self._tr_loss = saved["loss"].to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = saved["total_loss"], saved["last_logged"]
        self._initial_global_step = 0  # transformers 5.24 divides the sum by the steps since this one
        self._over = saved["over"] and saved["max_steps"] == self.state.max_steps
        self.state.compute_steps(self.args, self.state.max_steps)  # `save_steps` may have changed since the checkpoint
        if self.args.should_save:
            self._delete_old_checkpoints()  # the run may have been killed before it did so

    def _get_output_dir(self, trial: dict[str, Any] | None) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: dict[str, Any] | None) -> None:
        """Write the checkpoint to a staging folder, and move it to its final place when it is complete."""
        run, limit = Path(self._get_output_dir(trial)), self.args.save_total_limit
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = run / ".checkpoint.partial"
        # Old checkpoints must stay until the new one is in place. Without a limit, the superclass does not delete them.
        self._staging, self.args.save_total_limit = str(staging), None
        if self.args.should_save:
            run.mkdir(parents=True, exist_ok=True)
            new_folder(staging)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_json(staging / name / _HASHES, _hashes(staging / name))
            flush(staging / name)
            replace_folder(staging / name, run / name)
            remove(staging)
            self._delete_old_checkpoints()

    def _delete_old_checkpoints(self) -> None:
        """Delete all but the last `save_total_limit` checkpoints.

        Each is renamed first, so that a partly deleted one is never taken for a checkpoint.
        """
        limit = self.args.save_total_limit
        if limit is not None and limit > 0:
            for path in map(Path, sort_checkpoints(self.args.output_dir)[:-limit]):
                os.replace(path, unfinished(path))
                remove(unfinished(path))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The superclass would also pickle the training arguments.
        folder = output_dir or self.args.output_dir
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)

    def _saved_callbacks(self) -> list[SavedCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, SavedCallback)]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.lr_scheduler.state_dict()}
            save_state(Path(output_dir) / _OPTIMIZER, state)
            for callback in self._saved_callbacks():
                callback.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = load_state(Path(checkpoint) / _OPTIMIZER)
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["scheduler"])
            self._resumed = load_state(self._process_file(checkpoint))["progress"]
            for callback in self._saved_callbacks():
                callback.load(Path(checkpoint))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and self.args.should_save:
            save_state(Path(output_dir) / "scaler.safetensors", scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None and checkpoint is not None:
            scaler.load_state_dict(load_state(Path(checkpoint) / "scaler.safetensors"))

    def _process_file(self, folder: str) -> Path:
        """Return the file with the state of this process."""
        return Path(folder) / f"process_{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        save_state(self._process_file(output_dir), {"random": state, "progress": self._progress()})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = load_state(self._process_file(checkpoint))["random"]
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def _sampler_in(loader: DataLoader) -> Sampler[Any]:
    """Return the sampler of single examples, which accelerate wraps in batch samplers."""
    batches: Any = loader.batch_sampler
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    sampler: Sampler[Any] = batches.sampler
    return sampler


def checkpoint_to_resume(args: TrainingArguments, choice: str | bool | None) -> str | None:
    """Return the checkpoint folder that `resume_from_checkpoint` selects, or None to start from the beginning.

    The command line passes a string. "true" selects the last complete checkpoint in `output_dir`, if the run has saved
    one. Damaged checkpoints after it are deleted with a warning.

    Raises:
        InputError: the folder is not a checkpoint, lacks a file that resuming needs, or is damaged.
    """
    text = str(choice or "false")
    if text.lower() == "false":
        return None
    if text.lower() != "true":
        _check_complete(Path(text), args.world_size)
        if damaged := _damaged(Path(text)):
            reason = f"its {damaged} is not what was written: it was damaged or changed"
            raise InputError(Problem("resume_from_checkpoint", text, reason, "name the previous checkpoint"))
        return text
    saved = sort_checkpoints(args.output_dir) if Path(args.output_dir).is_dir() else []
    for path in map(Path, reversed(saved)):
        _check_complete(path, args.world_size)
        damaged = _damaged(path)
        if damaged is None:
            return str(path)
        logger.warning("deleting %s, because its %s is damaged. Training resumes from an earlier step", path, damaged)
        remove(path)
    return None


def _check_complete(checkpoint: Path, processes: int) -> None:
    """Raise `InputError` if the folder is not a complete checkpoint of a run with this number of processes."""
    own = [f"process_{number}.safetensors" for number in range(processes)]
    missing = [name for name in (TRAINER_STATE_NAME, _OPTIMIZER, _HASHES, *own) if not (checkpoint / name).is_file()]
    if missing:
        reason = f"it is not a complete checkpoint of this number of processes: it has no {', '.join(missing)}"
        fix = "name another checkpoint of the folder, or delete this one; save_only_model=true leaves no complete ones"
        raise InputError(Problem("resume_from_checkpoint", str(checkpoint), reason, fix))


def _hashes(checkpoint: Path) -> dict[str, str]:
    """Return {relative path: hash} of all files in a checkpoint."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in files}


def _damaged(checkpoint: Path) -> str | None:
    """Return the first file of a checkpoint that has changed since it was written, or None."""
    try:
        written = dict(read_json(checkpoint / _HASHES))
    except (ValueError, TypeError):
        return _HASHES
    found = {name: value for name, value in _hashes(checkpoint).items() if name != _HASHES}
    return next((name for name in sorted(written | found) if written.get(name) != found.get(name)), None)
