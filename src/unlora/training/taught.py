"""Early stopping when the model agrees with its teacher, for forget sets of any size."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unlora.common.progress import tell
from unlora.settings.training import AGREEMENT
from unlora.training.tensor_files import load_state, save_state

logger = logging.getLogger(__name__)
_STATE = "taught.safetensors"
# The measures whose running means must not exceed `AGREEMENT`.
_MEASURES = ("teacher_kl", "teacher_excess")
# The window of the running means, in updates. It is one pass over the forget set if that is longer.
_WINDOW = 8
# The minimum number of updates before agreement counts. With few rows, the running means are low before the model has
# learned the ends of the teacher's answers.
_MIN_UPDATES = 40
# Updates of linear warmup of the learning rate.
_WARMUP = 10
# The decay of the learning rate takes as many updates as reaching agreement did, and at least this many.
_MIN_DECAY = 10
# After this many updates or passes over the forget set, whichever is longer, the decay starts even without agreement.
_MAX_UPDATES, _MAX_PASSES = 200, 10


# The minimum number of steps of the whole training, unless max_steps is lower.
LEAST_STEPS = 2 * _MIN_UPDATES


def most_steps(per_pass: int) -> int:
    """Return the maximum number of steps: twice the limit for reaching agreement, because the decay takes as long.

    Args:
        per_pass: updates in a pass over the forget set.
    """
    return 2 * max(_MAX_UPDATES, _MAX_PASSES * per_pass)


class _Measuring(Protocol):
    """A trainer that collects {measure: mean over the update} until the callback reads and clears them."""

    update_means: dict[str, float]


class StopWhenTaught(TrainerCallback):
    """Keep the learning rate constant until the model agrees with its teacher, then decay it to 0 and stop.

    The forget answers are then as likely as under the teacher. This criterion needs neither unseen rows nor a retrained
    model, and no extra passes, because the means are computed from the training batches. A resumed run ends like an
    uninterrupted one.

    Args:
        trainer: the trainer whose loss reports the measures. Add this callback to it.
        per_pass: updates in a pass over the forget set.
    """

    def __init__(self, trainer: _Measuring, per_pass: int) -> None:
        self.trainer = trainer
        self.per_pass = per_pass
        self.reached: int | None = None
        self.values: deque[list[float]] = deque(maxlen=max(_WINDOW, per_pass))

    @property
    def most_steps(self) -> int:
        """The maximum number of steps of the whole training."""
        return most_steps(self.per_pass)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate after `step` updates."""
        warmup = min(1.0, (step + 1) / _WARMUP)
        if self.reached is None:
            return warmup
        return warmup * max(0.0, 1 - (step - self.reached) / self._decay)

    @property
    def _decay(self) -> int:
        assert self.reached is not None
        return max(_MIN_DECAY, self.reached)

    def save(self, checkpoint: Path) -> None:
        """Save the running means with a checkpoint."""
        save_state(checkpoint / _STATE, {"reached": self.reached, "values": list(self.values)})

    def load(self, checkpoint: Path) -> None:
        """Restore the running means from the checkpoint that training resumes from."""
        saved = load_state(checkpoint / _STATE)
        self.reached = saved["reached"]
        self.values.extend(saved["values"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the measures of the update, start the decay on agreement, and stop once the learning rate is 0."""
        means, self.trainer.update_means = self.trainer.update_means, {}
        self.values.append([means[name] for name in _MEASURES])
        # After half of the steps, the decay starts in any case, because it needs the other half.
        if self.reached is None and (self._agrees(state) or 2 * state.global_step >= state.max_steps):
            self.reached = state.global_step
            self._report(state)
        if self.reached is not None and state.global_step >= self.reached + self._decay:
            control.should_training_stop = True

    def _agrees(self, state: TrainerState) -> bool:
        if state.global_step < max(_MIN_UPDATES, self.values.maxlen or 0):
            return False
        return max(self._means()) <= AGREEMENT

    def _means(self) -> list[float]:
        return [sum(column) / len(self.values) for column in zip(*self.values, strict=True)]

    def _report(self, state: TrainerState) -> None:
        words = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(_MEASURES, self._means(), strict=True))
        if self._agrees(state):
            tell(f"the model agrees with its teacher after {state.global_step} updates ({words})")
        else:
            reason = f"after {state.global_step} updates the model does not agree with its teacher yet ({words})"
            logger.warning("%s: raise max_steps or learning_rate", reason)
