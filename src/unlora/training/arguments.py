"""The `TrainingArguments` that our trainers accept, with checks that run before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from unlora.common.errors import Problem, from_elsewhere, raise_if, unknown_name

# Arguments that shard a model while it trains, and the variables through which `accelerate launch` sets them.
_SHARDING = {"deepspeed": "ACCELERATE_USE_DEEPSPEED", "fsdp": "ACCELERATE_USE_FSDP"}

# Schedules of the learning rate that follow a metric of the evaluation.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
# The trackers that we test. For the others transformers itself checks whether they are installed.
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass
class SafeArguments(TrainingArguments):
    """The `TrainingArguments` that `SafeTrainer` supports.

    Raises:
        InputError: if the model would be sharded during training (DeepSpeed, FSDP): `SafeTrainer` could not write
            the checkpoints of such a model.
    """

    def __post_init__(self) -> None:
        reason = "the model would be sharded only when training starts, and its checkpoints would not be safetensors"
        fix = "train with a whole copy of the model per process, or shard the frozen base model: shard_base='fsdp' or "
        raise_if(
            Problem(name, getattr(self, name) or f"{variable}=true", reason, f"{fix}a ZeRO-3 file")
            for name, variable in _SHARDING.items()
            if getattr(self, name) or os.environ.get(variable) == "true"
        )
        # transformers checks combinations, and raises errors of many kinds that name no argument.
        with from_elsewhere("arguments", "of the training", "transformers refuses them", "change what it names"):
            super().__post_init__()

    def problems(self) -> list[Problem]:
        """Return what is wrong with the settings, before anything is loaded."""
        return [
            *reporting_problems(self.report_to),
            *_kernel_problems(self.use_liger_kernel, self.use_cpu),
            *_schedule_problems(self.lr_scheduler_type, self.lr_scheduler_kwargs),
            *_optimiser_problems(self),
            *_checkpointing_problems(self.gradient_checkpointing_kwargs),
            *self._choice_problems(),
        ]

    @property
    def evaluates(self) -> bool:
        """Whether the model is evaluated while it trains."""
        return self.eval_strategy != "no" or self.eval_on_start

    def _choice_problems(self) -> Iterator[Problem]:
        """Yield the settings that let a metric of the evaluation decide."""
        reason, fix = "no metric decides about training or checkpoints here", "remove it"
        if self.load_best_model_at_end:
            yield Problem("load_best_model_at_end", True, reason, f"{fix}, or --save_strategy epoch and choose one")
        if self.save_strategy == "best":
            yield Problem("save_strategy", "best", reason, "use epoch or steps")
        if self.lr_scheduler_type in _BY_METRIC:
            yield Problem("lr_scheduler_type", str(self.lr_scheduler_type.value), reason, "use another schedule")
        elif self.metric_for_best_model is not None and not self.load_best_model_at_end:
            yield Problem("metric_for_best_model", self.metric_for_best_model, reason, fix)


def changed_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that differ from their defaults, as plain values for YAML."""
    # Creating another `TrainingArguments` sets up the device again. With another device than before, this process would
    # leave the process group that it trains with, so the second one gets the same `use_cpu`.
    values, defaults = args.to_dict(), type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict()
    defaults |= {"output_dir": None, "use_cpu": False}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _kernel_problems(use_liger_kernel: bool, use_cpu: bool) -> list[Problem]:
    if not use_liger_kernel:
        return []
    if use_cpu or not torch.accelerator.is_available():
        reason, fix = "the Liger kernels need a GPU, and this run has none", "remove use_liger_kernel"
        return [Problem("use_liger_kernel", True, reason, fix)]
    if find_spec("liger_kernel") is None:
        return [Problem("use_liger_kernel", True, "it is not installed", "install it: pip install 'unlora[liger]'")]
    return []


def _schedule_problems(kind: str, settings: dict[str, Any] | None) -> list[Problem]:
    """Return the problem of settings that the schedule does not take. Transformers ignores some, and finds others late.

    A schedule of a single weight is made, and does one step.
    """
    if not settings:
        return []
    name = SchedulerType(kind).value
    fix = f"write what the schedule {name!r} takes, or leave it out: transformers' page on schedules lists it"
    if name.startswith("constant"):
        return [Problem("lr_scheduler_kwargs", settings, "this schedule has no settings", fix)]
    try:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = get_scheduler(name, optimiser, 1, 10, dict(settings))
        optimiser.step()
        schedule.step()
    except Exception as error:  # each schedule checks, or does not check, in its own way
        return [Problem("lr_scheduler_kwargs", settings, f"the schedule refuses it ({error})", fix)]
    return []


def _optimiser_problems(args: TrainingArguments) -> list[Problem]:
    """Return the problem of `optim_args` that the optimiser does not take, or that have no effect on it."""
    if not args.optim_args:
        return []
    fix = "write what this optimiser takes as name=value, or leave it out"
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        kind([torch.zeros(1, requires_grad=True)], **settings)
        without = copy(args)
        without.optim_args = None
        _, others = Trainer.get_optimizer_cls_and_kwargs(without)
    except Exception as error:  # each optimiser checks in its own way
        return [Problem("optim_args", args.optim_args, f"{OptimizerNames(args.optim).value} refuses it ({error})", fix)]
    if settings == others:
        return [Problem("optim_args", args.optim_args, f"it has no effect on {OptimizerNames(args.optim).value}", fix)]
    return []


def _checkpointing_problems(settings: dict[str, Any] | None) -> list[Problem]:
    known = {*signature(checkpoint).parameters, "preserve_rng_state", "every_n_layers", "offload"}
    known -= {"function", "args", "kwargs", "context_fn"}
    return [unknown_name("gradient_checkpointing_kwargs", name, known) for name in settings or {} if name not in known]


def reporting_problems(report_to: Sequence[str] | str | None) -> list[Problem]:
    """Return a problem for each tracker in `report_to` that is unknown or not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = [report_to] if isinstance(report_to, str) else report_to or []
    known = [*INTEGRATION_TO_CALLBACK, "none", "all"]
    problems = [unknown_name("report_to", name, known) for name in names if name not in known]
    missing = [name for name in names if name in TRACKERS and find_spec(name) is None]
    return problems + [
        Problem("report_to", name, "it is not installed", f"install it: pip install {name}") for name in missing
    ]
