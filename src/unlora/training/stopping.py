"""When to stop: at the first moment when the forget set cannot be told from data that the model never saw."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from unlora.common.errors import InputError, Problem, raise_if
from unlora.data import Example, TextFormat, check_overlap, encode_records, load_set
from unlora.data.sources import Record, has_keys
from unlora.evals import metrics
from unlora.evals.scoring import example_nll
from unlora.evals.tofu import read_questions
from unlora.settings import STOP_STATISTICS, StoppingConfig
from unlora.training.tensor_files import load_state, save_state

logger = logging.getLogger(__name__)
# Fewer rows than this cannot differ significantly unless they differ almost wholly.
LEAST_ROWS = 8
# The level of the Kolmogorov-Smirnov test below which the two sets are said to be told apart.
LEVEL = 0.05
STATE = "stopping.safetensors"


@dataclass(frozen=True)
class Comparison:
    """How well the forget set can be told from unseen data.

    Args:
        auc: `metrics.membership_auc`, the mean over the statistics: above 0.5 the forget set is still known, below it
            is less likely than data that was never seen.
        ks_pvalue: the smallest of the statistics.
        forget_nll: mean over the forget rows of the answer's mean-token NLL, in nats.
        holdout_nll: the same over the holdout rows.
    """

    auc: float
    ks_pvalue: float
    forget_nll: float
    holdout_nll: float

    def logs(self) -> dict[str, float]:
        """As they stand in the trainer's log."""
        return {f"stop_{name}": value for name, value in vars(self).items()}

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f}, KS p {self.ks_pvalue:.2g}"


class UnseenTest:
    """Compares forget and holdout rows under a model, by scoring alone.

    Args:
        forget: rows to forget.
        holdout: rows of the same kind that the model never saw.
        text_format: how they become tokens.
        statistic: "nll" is the mean-token NLL of a row's answer, "truth_ratio" TOFU's (geometric), in which the
            answer's own predictability cancels; "auto" takes both where all rows have `perturbed_answer`, and all or
            none `paraphrased_answer`, else the NLL.
        batch_size: rows of a forward pass.

    Raises:
        InputError: fewer than eight rows in a set, rows that cannot be read, or no truth ratios where they are asked.
    """

    def __init__(
        self,
        forget: Sequence[Record],
        holdout: Sequence[Record],
        text_format: TextFormat,
        statistic: str = "auto",
        batch_size: int = 32,
    ) -> None:
        comparable = _truth_ratios_compare([*forget, *holdout])
        if statistic == "truth_ratio" and not comparable:
            reason = "not every row has perturbed_answer, or only some have paraphrased_answer"
            raise InputError(Problem("stop_statistic", statistic, reason, "use nll, or give all rows both"))
        known = STOP_STATISTICS["auto" if comparable else "nll"]
        self.statistics = [name for name in STOP_STATISTICS[statistic] if name in known]
        self.text_format = text_format
        self.batch_size = batch_size
        named = {"forget_data": forget, "holdout_data": holdout}
        self.samples = [self._encode(rows, name) for name, rows in named.items()]
        sizes = dict(zip(named, map(len, self.samples), strict=True))
        reason, fix = "so few say nothing about when to stop", f"give at least {LEAST_ROWS}, or no holdout_data"
        raise_if(Problem(n, f"{size} examples", reason, fix) for n, size in sizes.items() if size < LEAST_ROWS)

    def _encode(self, rows: Sequence[Record], name: str) -> list[list[Example]]:
        """For each example what is scored: its answer, and for the truth ratio the paraphrase and wrong answers."""
        if self.statistics == ["nll"]:
            return [[example] for example in encode_records(rows, self.text_format, argument=name)]
        return [
            encode_records([{"question": row.question, "answer": text} for text in row.texts()], self.text_format)
            for row in read_questions(name, rows)
        ]

    def __call__(self, model: nn.Module) -> Comparison:
        """Scores both sets; the model and all random states are left as they were. NaN where its loss is not finite."""
        texts = [text for sample in self.samples for texts in sample for text in texts]
        sums, tokens = example_nll(model, texts, self.text_format, self.batch_size)
        if not np.isfinite(sums).all():
            return Comparison(*[math.nan] * 4)
        losses = iter((sums / tokens).tolist())
        forget, holdout = ([[next(losses) for _ in texts] for texts in sample] for sample in self.samples)
        forget_nll, holdout_nll = (sum(row[0] for row in rows) / len(rows) for rows in (forget, holdout))
        values = [(_values(name, forget), _values(name, holdout)) for name in self.statistics]
        auc = sum(metrics.membership_auc(*pair) for pair in values) / len(values)
        pvalue = min(metrics.ks_pvalue(*pair) for pair in values)
        return Comparison(auc, pvalue, forget_nll, holdout_nll)


def _values(statistic: str, losses: Sequence[Sequence[float]]) -> list[float]:
    """The statistic of each example, from the losses of its answer and what else is scored; low where it is known."""
    if statistic == "nll":
        return [answer for answer, *_ in losses]
    paraphrased, perturbed = [row[1] for row in losses], [row[2:] for row in losses]
    return metrics.truth_ratio(paraphrased, perturbed, "geometric").tolist()


def _truth_ratios_compare(rows: Sequence[Record]) -> bool:
    """Whether all have one, and of the same kind: with the answer in other words, or with the answer itself."""
    paraphrased = sum(has_keys(row, "paraphrased_answer") for row in rows)
    wrong = all(has_keys(row, "question", "answer", "perturbed_answer") for row in rows)
    return wrong and paraphrased in (0, len(rows))


def unseen_test(
    config: StoppingConfig,
    forget: Sequence[Record],
    retain: Sequence[Record],
    text_format: TextFormat,
    rows: int | None,
    batch_size: int,
) -> UnseenTest | None:
    """The test that the settings name, of the first `rows` rows of each set; None where they name no holdout set.

    Raises:
        InputError: as `UnseenTest`, or holdout rows that the model is trained on here.
    """
    if config.holdout_data is None:
        return None
    holdout = load_set(config, "holdout")
    check_overlap(forget, holdout, names=("forget", "holdout"))
    check_overlap(retain, holdout, names=("retain", "holdout"))
    return UnseenTest(forget[:rows], holdout[:rows], text_format, config.stop_statistic, batch_size)


class StopWhenUnseen(TrainerCallback):
    """Stops training at the first check whose AUC is at most `target`, and keeps the check nearest to it.

    Before unlearning the forget set is far more likely than unseen data (AUC near 1); forgotten, it is as likely (0.5);
    forgotten too much, less likely, which is a trace of its own. Every check enters the trainer's log as `stop_auc`,
    `stop_ks_pvalue`, `stop_forget_nll` and `stop_holdout_nll`; the last adds `stop_step`, the step that is kept.
    The nearest check so far is kept in memory (trainable parameters) and stands in every checkpoint in `output_dir`, so
    that a resumed run ends as the whole run would have.

    Args:
        trainer: whose log the checks enter; add this callback with `trainer.add_callback`.
        test: compares the two sets.
        every: optimiser steps between checks; there is one before the first step and one after the last, too.
        target: the AUC to reach.

    Raises:
        InputError: from `train`, if the AUC is at the target before the first step.
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

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Compares the untrained model, or takes up the nearest check of the checkpoint that training resumes from."""
        file = _checkpoint(args, state) / STATE
        if not state.global_step:
            now = self.test(model)
            self.trainer.log(now.logs())
            if now.auc <= self.target:
                reason = f"before unlearning the forget set is no more likely than these rows ({now})"
                fix = "give rows of the forget set's kind that the model never saw, or leave holdout_data out"
                raise InputError(Problem("holdout_data", f"{len(self.test.samples[1])} examples", reason, fix))
        elif file.is_file():
            saved = load_state(file)
            self.step, self.parameters, self.stopped = saved["step"], saved["parameters"], saved["stopped"]
            self.nearest = Comparison(**saved["nearest"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds the nearest check to the checkpoint."""
        if self.nearest and args.should_save:
            saved = {"step": self.step, "parameters": self.parameters, "stopped": self.stopped}
            save_state(_checkpoint(args, state) / STATE, saved | {"nearest": vars(self.nearest)})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Checks, and stops if the time has come."""
        if self.stopped:  # resumed after the end: the step just done is undone by `on_train_end`
            control.should_training_stop = True
        elif state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._check(state, control, model)

    def _check(self, state: Any, control: Any, model: nn.Module) -> None:
        now = self.test(model)
        if math.isnan(now.auc):
            return  # the weights have diverged, and the trainer's own guard stops at the next batch
        if self.nearest is None or abs(now.auc - self.target) <= abs(self.nearest.auc - self.target):
            self.nearest, self.step = now, state.global_step
            self.parameters = {name: p.detach().clone() for name, p in _trainable(model).items()}
        self.stopped = now.auc <= self.target
        wanted = control.should_log  # logging takes the trainer's own wish to log for done
        self.trainer.log({**now.logs(), "stop_step": self.step} if self.stopped else now.logs())
        control.should_log = wanted
        if self.stopped:
            control.should_training_stop = True
            self._put_back(model)  # now, so that a checkpoint of this step holds it
            self._report(now, state.global_step)
        elif state.global_step == state.max_steps:
            reason = f"after the last step the forget set can still be told from unseen data ({now})"
            logger.warning("%s: train longer or with a higher learning rate", reason)

    def _report(self, now: Comparison, step: int) -> None:
        logger.info("stopped at step %d (%s), kept step %d (%s)", step, now, self.step, self.nearest)
        if self.nearest and self.nearest.ks_pvalue < LEVEL:
            reason = (
                f"the forget set can be told from unseen data at the nearest check ({self.nearest}, step {self.step})"
            )
            logger.warning("%s; at step %d it was %s: lower stop_every or learning_rate", reason, step, now)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Leaves the model at the kept step, if the rule stopped it."""
        if self.stopped:
            self._put_back(model)

    @torch.no_grad()
    def _put_back(self, model: nn.Module) -> None:
        for name, parameter in _trainable(model).items():
            parameter.copy_(self.parameters[name])


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
