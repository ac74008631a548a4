"""Early stopping when the forget set can no longer be distinguished from data that the model never saw."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unlora.common.errors import InputError, Problem
from unlora.common.progress import tell
from unlora.data import Example, TextFormat, check_overlap, encode_answers, encode_records, load_set
from unlora.data.conversations import all_answers
from unlora.data.sources import Record, has_keys, is_text
from unlora.evals import metrics
from unlora.evals.questions import read_questions
from unlora.evals.scoring import example_nll
from unlora.settings import STOP_STATISTICS, StoppingConfig
from unlora.training.snapshots import restore, snapshot
from unlora.training.tensor_files import load_state, save_state

logger = logging.getLogger(__name__)
# The half-width of the central 95 % of a normal distribution, in standard errors.
_SPREAD = 1.96
# The user is warned if a deviation of the AUC from 0.5 must exceed this to be detected.
_MAX_UNDETECTED = 0.25
# The largest possible deviation of an AUC from 0.5.
_LARGEST = 0.5
# The significance level of the Kolmogorov-Smirnov test.
_SIGNIFICANCE = 0.05
_STATE_FILE = "stopping.safetensors"


@dataclass(frozen=True)
class Comparison:
    """How well the forget set can be distinguished from unseen data.

    Args:
        auc: `metrics.membership_auc`, averaged over the statistics. Above 0.5, the model still knows the forget set;
            below 0.5, the forget set is less likely than data that the model never saw.
        ks_pvalue: the smallest p-value of the statistics.
        forget_nll: mean over the forget rows of the answer's mean-token NLL, in nats.
        holdout_nll: the same mean over the holdout rows.
        auc_standard_error: the standard error of the AUC between two samples of these sizes from one distribution.
    """

    auc: float
    ks_pvalue: float
    forget_nll: float
    holdout_nll: float
    auc_standard_error: float = 0.0

    def logs(self) -> dict[str, float]:
        """Return {name in the trainer's log: value}."""
        return {f"stop_{name}": value for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f} ± {self.auc_standard_error:.3f}, KS p {self.ks_pvalue:.2g}"


class UnseenTest:
    """Compare forget and holdout rows by their scores under a model.

    Args:
        forget: rows to forget.
        holdout: rows of the same kind that the model never saw.
        text_format: the tokenizer and prompt format.
        statistic: "nll" is the mean-token NLL of a row's answer. "truth_ratio" is TOFU's geometric truth ratio, in
            which the general likelihood of an answer cancels out. "auto" uses both if all rows have
            `perturbed_answer`, and all or none of them `paraphrased_answer`; otherwise only the NLL.
        batch_size: maximum number of rows in a forward pass. None fills the memory of a GPU.
        most: use only the first `most` examples of each set. None uses all.

    Raises:
        InputError: rows that cannot be read, or rows without truth ratios although `statistic` needs them.
    """

    def __init__(
        self,
        forget: Sequence[Record],
        holdout: Sequence[Record],
        text_format: TextFormat,
        statistic: str = "auto",
        batch_size: int | None = None,
        most: int | None = None,
    ) -> None:
        comparable = _have_comparable_truth_ratios([*forget, *holdout])
        if statistic == "truth_ratio" and not comparable:
            reason = "not every row has perturbed_answer, or only some rows have paraphrased_answer"
            raise InputError(Problem("stop_statistic", statistic, reason, "use nll, or give all rows both"))
        available = STOP_STATISTICS["auto" if comparable else "nll"]
        self.statistics = [name for name in STOP_STATISTICS[statistic] if name in available]
        self.text_format = text_format
        self.batch_size = batch_size
        named = {"forget_data": forget, "holdout_data": holdout}
        self.samples = [self._encode(rows[:most], name)[:most] for name, rows in named.items()]
        self.standard_error = metrics.auc_standard_error(*map(len, self.samples))
        self._warn_of_few()

    def _warn_of_few(self) -> None:
        sizes, detected = list(map(len, self.samples)), _SPREAD * self.standard_error
        if detected >= _LARGEST:
            logger.warning("%d forget and %d unseen rows are too few: no AUC would be a significant difference", *sizes)
        elif detected > _MAX_UNDETECTED:
            bounds = 0.5 + detected, 0.5 - detected
            text = "%d forget and %d unseen rows are few: only an AUC above %.2f or below %.2f would be significant"
            logger.warning(text, *sizes, *bounds)

    def _encode(self, rows: Sequence[Record], name: str) -> list[list[Example]]:
        """Return the texts to score for each example: the answer, and for truth ratios paraphrase and wrong answers."""
        if self.statistics == ["nll"]:
            return [[example] for example in encode_records(rows, self.text_format, argument=name)]
        return [
            encode_answers([(row.question, text) for text in row.texts()], self.text_format)
            for row in read_questions(name, rows)
        ]

    def __call__(self, model: nn.Module) -> Comparison:
        """Score both sets without changing the model or random states. If a loss is not finite, all values are NaN."""
        texts = [text for sample in self.samples for texts in sample for text in texts]
        sums, tokens = example_nll(model, texts, self.text_format, self.batch_size)
        if not np.isfinite(sums).all():
            return Comparison(*[math.nan] * 4)
        losses = iter((sums / tokens).tolist())
        forget, holdout = ([[next(losses) for _ in texts] for texts in sample] for sample in self.samples)
        forget_nll, holdout_nll = (float(np.mean([row[0] for row in rows])) for rows in (forget, holdout))
        pairs = [(_values(name, forget), _values(name, holdout)) for name in self.statistics]
        auc = float(np.mean([metrics.membership_auc(*pair) for pair in pairs]))
        p = min(metrics.ks_pvalue(*pair) for pair in pairs)
        return Comparison(auc, p, forget_nll, holdout_nll, self.standard_error)


def _values(statistic: str, losses: Sequence[Sequence[float]]) -> list[float]:
    """Return the statistic of each example from the losses of its texts. It is low if the model knows the example."""
    if statistic == "nll":
        return [answer for answer, *_ in losses]
    paraphrased, perturbed = [row[1] for row in losses], [row[2:] for row in losses]
    return metrics.truth_ratio(paraphrased, perturbed, "geometric").tolist()


def _have_comparable_truth_ratios(rows: Sequence[Record]) -> bool:
    """Return whether all rows have truth ratios of the same kind, relative to a paraphrase or to the answer."""
    answers = all_answers(rows, "rows")
    paraphrased = sum(has_keys(one.columns, "paraphrased_answer") for one in answers)
    wrong = all(has_keys(one.columns, "perturbed_answer") for one in answers) and not any(map(is_text, rows))
    return wrong and paraphrased in (0, len(answers))


def holdout_rows(config: StoppingConfig, forget: Sequence[Record], retain: Sequence[Record]) -> Sequence[Record] | None:
    """Return the configured holdout set, or None if there is none.

    Raises:
        InputError: rows that cannot be read, or that also occur in the forget or retain set.
    """
    if config.holdout_data is None:
        return None
    holdout = load_set(config, "holdout")
    check_overlap(forget, holdout, names=("forget", "holdout"))
    check_overlap(retain, holdout, names=("retain", "holdout"))
    return holdout


def unseen_test(
    config: StoppingConfig,
    forget: Sequence[Record],
    holdout: Sequence[Record] | None,
    text_format: TextFormat,
    most: int | None,
    batch_size: int | None,
) -> UnseenTest | None:
    """Return the configured test on the first `most` examples of each set, or None if there is no holdout set.

    Raises:
        InputError: as `UnseenTest`.
    """
    if holdout is None:
        return None
    return UnseenTest(forget, holdout, text_format, config.stop_statistic, batch_size, most)


class StopWhenUnseen(TrainerCallback):
    """Stop training at the first check whose AUC is at most `target`, and keep the adapter whose AUC is nearest to it.

    Before unlearning, the forget set is far more likely than unseen data (AUC near 1). Once it is forgotten, it is
    equally likely (0.5). If it is forgotten too much, it is less likely, which also reveals it. Each check logs
    `stop_auc`, `stop_ks_pvalue`, `stop_forget_nll` and `stop_holdout_nll`, and the last one also `stop_step`, the step
    that is kept. The trainable parameters of the nearest check are held in memory and saved with every checkpoint, so
    that a resumed run ends like an uninterrupted one.

    Args:
        trainer: the trainer whose log the checks go to. Add this callback to it with `trainer.add_callback`.
        test: compares the two sets.
        every: optimiser steps between checks. There is also a check before the first step and after the last.
        target: the AUC to reach.

    Raises:
        InputError: from `train`, if the AUC is at or below the target before the first step.
    """

    def __init__(self, trainer: Trainer, test: UnseenTest, every: int = 5, target: float = 0.5) -> None:
        self.trainer = trainer
        self.test = test
        self.every = every
        self.target = target
        self.nearest: Comparison | None = None
        self.step = 0
        self.parameters: dict[str, Tensor] = {}
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Check the model before the first step."""
        if not state.global_step:
            now = self.test(model)
            self.trainer.log(now.logs())
            if now.auc <= self.target:
                reason = f"before unlearning the forget set is no more likely than these rows ({now})"
                fix = "give rows like the forget set's that the model never saw, or remove holdout_data"
                raise InputError(Problem("holdout_data", f"{len(self.test.samples[1])} examples", reason, fix))

    def save(self, checkpoint: Path) -> None:
        """Save the nearest check with a checkpoint."""
        saved = {"step": self.step, "parameters": self.parameters, "stopped": self.stopped}
        save_state(checkpoint / _STATE_FILE, saved | {"nearest": self.nearest and vars(self.nearest)})

    def load(self, checkpoint: Path) -> None:
        """Restore the nearest check from the checkpoint that training resumes from."""
        saved = load_state(checkpoint / _STATE_FILE)
        self.step, self.parameters, self.stopped = saved["step"], saved["parameters"], saved["stopped"]
        self.nearest = Comparison(**saved["nearest"]) if saved["nearest"] else None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Check the model if a check is due, and stop at the target."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._check(state, control, model)

    def _check(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        now = self.test(model)
        if math.isnan(now.auc):
            return  # the model has diverged, so the trainer will raise `DivergenceError` at the next batch
        if self.nearest is None or abs(now.auc - self.target) <= abs(self.nearest.auc - self.target):
            self.nearest, self.step = now, state.global_step
            self.parameters = snapshot(model)
        self.stopped = now.auc <= self.target
        should_log = control.should_log
        self.trainer.log({**now.logs(), "stop_step": self.step} if self.stopped else now.logs())
        control.should_log = should_log  # `log` resets it, and the trainer would then not log its losses at this step
        if self.stopped:
            control.should_training_stop = True
            restore(model, self.parameters)  # before a checkpoint of this step is saved, which should contain them
            self._report(now, state.global_step)
        elif state.global_step == state.max_steps:
            reason = f"after the last step the forget set can still be told from unseen data ({now})"
            logger.warning("%s: train longer, or with a higher learning rate", reason)

    def _report(self, now: Comparison, step: int) -> None:
        tell(f"stopped at step {step} ({now}), kept step {self.step} ({self.nearest})")
        if self.nearest and self.nearest.ks_pvalue < _SIGNIFICANCE:
            nearest = f"{self.nearest}, step {self.step}"
            logger.warning(
                "the forget set can be told from unseen data at the nearest check (%s); at step %d it was %s: lower "
                "stop_every or learning_rate",
                *(nearest, step, now),
            )

    def on_train_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        """Restore the parameters of the kept step if the test stopped training."""
        if self.stopped:
            restore(model, self.parameters)
