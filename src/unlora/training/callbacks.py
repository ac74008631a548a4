"""Trainer callbacks that any training run uses: a progress bar, and a checkpoint when the user interrupts the run."""

from __future__ import annotations

import signal
import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unlora.common.progress import bar


class TrainingBar(TrainerCallback):
    """A progress bar over the optimiser steps that shows the last logged losses and the name of the run, if any."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the step from which the run starts or resumes."""
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


class SaveOnInterrupt(TrainerCallback):
    """A context in which the first Ctrl-C saves a checkpoint after the current step, and a second one stops at once.

    Raises:
        KeyboardInterrupt: on leaving the context, if there was a Ctrl-C.
    """

    interrupted = False

    def __enter__(self) -> SaveOnInterrupt:
        self.previous_handler = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        signal.signal(signal.SIGINT, self.previous_handler)
        if self.interrupted and kind is None:
            raise KeyboardInterrupt

    def _handle(self, *signal_and_frame: Any) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self.previous_handler)
        print("interrupted: stopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save a checkpoint and stop, if the user asked for it."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True
