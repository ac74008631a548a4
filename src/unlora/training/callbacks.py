"""Trainer callbacks of every training run: the display of its progress, and the timing of its checkpoints."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unlora.common.progress import bar, tell


class TrainingBar(TrainerCallback):
    """A progress bar over optimiser steps, with the name of the run, if it has one, and the last logged losses."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the step at which training starts or resumes."""
        name = f"training {args.run_name}" if args.run_name else "training"
        self.bar = bar(total=state.max_steps, initial=state.global_step, desc=name, unit=" steps")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        self.bar.update(1)

    def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the logged losses."""
        losses = {name: f"{value:.4g}" for name, value in (logs or {}).items() if name.endswith("loss")}
        if losses:
            self.bar.set_postfix(losses, refresh=False)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()


class TrainingLines(TrainerCallback):
    """Print a line for each log entry with a loss. With `disable_tqdm`, this replaces the progress bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line, such as "step 20 of 400: loss 0.31, forget_loss 0.17, retain_loss 0.07"."""
        losses = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if name.endswith("loss")]
        if losses:
            tell(f"step {state.global_step} of {state.max_steps}: {', '.join(losses)}")


@runtime_checkable
class SavedCallback(Protocol):
    """A callback whose state is part of every checkpoint."""

    def save(self, checkpoint: Path) -> None:
        """Write the state into the folder of a checkpoint."""

    def load(self, checkpoint: Path) -> None:
        """Restore the state from the checkpoint that training resumes from."""


class AtTrainBegin(TrainerCallback):
    """Call a function when training begins or resumes."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Call the function."""
        self.function()


class CheckpointTiming(TrainerCallback):
    """A callback and context manager that decides when a due checkpoint is written. It must be the last callback.

    The checkpoint of an epoch's last step is written at the end of the epoch, after the log entry of the epoch, so that
    a resumed run has this entry too. The first Ctrl-C saves a checkpoint after the current step and stops training; a
    second one stops at once.

    Args:
        handles_interrupts: whether to handle Ctrl-C. Several processes would not stop at the same step, and only the
            main thread can set a signal handler.

    Raises:
        KeyboardInterrupt: on leaving the context, after a Ctrl-C.
    """

    def __init__(self, handles_interrupts: bool) -> None:
        self.handles_interrupts = handles_interrupts
        self.interrupted = False
        self.over = False  # whether training has ended for another reason than an interrupt
        self._cut_short = False
        self._due = False

    def __enter__(self) -> CheckpointTiming:
        if self.handles_interrupts:
            self.previous_handler = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self.handles_interrupts:
            signal.signal(signal.SIGINT, self.previous_handler)
        if self.interrupted and kind is None:
            raise KeyboardInterrupt

    def _handle(self, *signal_and_frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self.previous_handler)
        print("interrupted: stopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop after an interrupt, and postpone the checkpoint of an epoch's last step."""
        self.over = control.should_training_stop
        ends_epoch = self.over or state.epoch == int(state.epoch)
        self._cut_short = self.interrupted and not ends_epoch
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        self._due = control.should_save and ends_epoch
        if self._due:
            control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the postponed checkpoint. After an epoch that was interrupted, neither save, log nor evaluate."""
        if self._cut_short:
            control.should_log = control.should_save = control.should_evaluate = False
        elif self._due:
            control.should_save = True
