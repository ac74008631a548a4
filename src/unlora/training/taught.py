"""Train until the model agrees with its teacher, however many rows there are."""

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
# The means that must be at most `AGREEMENT`.
_MEASURES = ("teacher_kl", "teacher_excess")
# Means are over so many updates, or over a pass over the forget set if that is longer.
_WINDOW = 8
# With few rows, the loss reaches the goal before each of the teacher's answers is learned to its end.
_LEAST_UPDATES = 40
_WARMUP = 10
# The learning rate falls over as many updates as it took to reach the goal, and over no fewer than this.
_LEAST_DECAY = 10
# Updates, and passes over the forget set, after which the goal is given up.
MOST_UPDATES, MOST_PASSES = 200, 10


# The training is at least this long, unless max_steps ends it.
LEAST_STEPS = 2 * _LEAST_UPDATES


def most_steps(per_pass: int) -> int:
    """Return the limit of the whole training: twice that of reaching the goal, as the learning rate falls afterwards.

    Args:
        per_pass: updates in a pass over the forget set.
    """
    return 2 * max(MOST_UPDATES, MOST_PASSES * per_pass)


class _Measuring(Protocol):
    """A trainer that keeps the means of what it measured since they were last taken."""

    update_means: dict[str, float]


class StopWhenTaught(TrainerCallback):
    """Hold the learning rate until the model agrees with its teacher, then let it fall to 0 and stop.

    The forget answers are then as likely as the teacher finds them, which says when to stop without unseen rows and
    without a retrained model. Both means come from the training batches, so they cost no extra pass. A resumed run
    ends as the whole run would have.

    Args:
        trainer: whose loss reports how far training has come; add this callback to it.
        per_pass: updates in a pass over the forget set.
    """

    def __init__(self, trainer: _Measuring, per_pass: int) -> None:
        self.trainer = trainer
        self.per_pass = per_pass
        self.reached: int | None = None
        self.values: deque[list[float]] = deque(maxlen=max(_WINDOW, per_pass))

    @property
    def most_steps(self) -> int:
        """The limit of the whole training."""
        return most_steps(self.per_pass)

    def factor(self, step: int) -> float:
        """The factor of the learning rate after `step` updates."""
        rising = min(1.0, (step + 1) / _WARMUP)
        if self.reached is None:
            return rising
        return rising * max(0.0, 1 - (step - self.reached) / self._decay)

    @property
    def _decay(self) -> int:
        assert self.reached is not None
        return max(_LEAST_DECAY, self.reached)

    def save(self, checkpoint: Path) -> None:
        """Add the progress to a checkpoint."""
        save_state(checkpoint / _STATE, {"reached": self.reached, "values": list(self.values)})

    def load(self, checkpoint: Path) -> None:
        """Take up the progress of the checkpoint that training resumes from."""
        saved = load_state(checkpoint / _STATE)
        self.reached = saved["reached"]
        self.values.extend(saved["values"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the means of the update, and stop once the learning rate has fallen to 0."""
        means, self.trainer.update_means = self.trainer.update_means, {}
        self.values.append([means[name] for name in _MEASURES])
        # At half of the steps the goal is given up, because the learning rate needs the other half to fall.
        if self.reached is None and (self._agrees(state) or 2 * state.global_step >= state.max_steps):
            self.reached = state.global_step
            self._report(state)
        if self.reached is not None and state.global_step >= self.reached + self._decay:
            control.should_training_stop = True

    def _agrees(self, state: TrainerState) -> bool:
        if state.global_step < max(_LEAST_UPDATES, self.values.maxlen or 0):
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
