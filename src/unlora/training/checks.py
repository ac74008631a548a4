"""Checks that the arguments of `UnlearnTrainer` are consistent."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from torch import nn

from unlora.adapter.settings import UNLEARN
from unlora.common.errors import Problem
from unlora.data import Example
from unlora.data.lessons import Lesson
from unlora.losses.table import LOSSES
from unlora.settings.names import NO_RETAIN
from unlora.training.config import UnlearnConfig


def argument_problems(
    model: nn.Module,
    args: UnlearnConfig,
    forget: Sequence[Example],
    retain: Sequence[Example],
    alternates: Sequence[Example] | None,
    lessons: Sequence[Lesson] | None,
) -> list[Problem]:
    """Return the problems of the combination of model, datasets and settings, given the arguments of the trainer."""
    problems = []
    if not isinstance(model, PeftModel) or UNLEARN not in model.peft_config:
        reason, fix = f"it has no adapter {UNLEARN!r}", "pass the model that attach_adapters returns"
        problems.append(Problem("model", type(model).__name__, reason, fix))
    else:
        problems += args.model_problems(model)
    if not len(forget):
        reason, fix = "there is nothing to forget", "give at least one example"
        problems.append(Problem("forget_dataset", "0 examples", reason, fix))
    if not len(retain) and args.chosen_retain_loss != NO_RETAIN:
        reason, fix = f"{args.chosen_retain_loss!r} needs retain data", "give retain examples or use retain_loss='none'"
        problems.append(Problem("retain_dataset", "0 examples", reason, fix))
    if "alternate" in LOSSES[args.loss].reads and alternates is None:
        reason = f"{args.loss!r} trains on an alternate answer to each forget question"
        problems.append(Problem("alternates", None, reason, "give one tokenised example for each forget example"))
    if LOSSES[args.loss].needs_teacher and lessons is None:
        reason, fix = f"{args.loss!r} distils a teacher", "give one lesson for each forget example"
        problems.append(Problem("lessons", None, reason, fix))
    for name, given in {"alternates": alternates, "lessons": lessons}.items():
        if given is not None and len(given) != len(forget):
            reason, fix = f"there are {len(forget)} forget examples", "give one for each of them, in the same order"
            problems.append(Problem(name, f"{len(given)} examples", reason, fix))
    return problems


def evaluator_problems(args: UnlearnConfig, evaluator: object) -> list[Problem]:
    """Return a problem if the settings ask for evaluations and there is no evaluator."""
    if not args.evaluates or evaluator is not None:
        return []
    fix = "give a function that returns the model's numbers, or use eval_strategy='no'"
    return [Problem("evaluator", None, f"eval_strategy={args.eval_strategy.value!r} asks for evaluations", fix)]
