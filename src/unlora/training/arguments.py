"""The `TrainingArguments` of our trainers, with checks that run before anything is loaded."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend, GradientAccumulationPlugin
from torch.utils.checkpoint import checkpoint
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import OptimizerNames

from unlora.common.errors import InputError, Problem, from_elsewhere, raise_if, unknown_name
from unlora.common.reading import parse_json, read_json
from unlora.models.hub import check_hub
from unlora.settings.checks import at_least, value_problems

# Arguments that shard the model during training, and the environment variables by which `accelerate launch` sets them.
_SHARDING = {"deepspeed": "ACCELERATE_USE_DEEPSPEED", "fsdp": "ACCELERATE_USE_FSDP", "fsdp_config": None}
# The exceptions that transformers raises for invalid combinations of arguments.
_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)

# Learning rate schedules that depend on an evaluation metric.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")
# The trackers that we test. For all others, transformers checks whether they are installed.
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass
class SafeArguments(TrainingArguments):
    """The `TrainingArguments` that `SafeTrainer` supports.

    Raises:
        InputError: the model would be sharded during training (DeepSpeed, FSDP), so that `SafeTrainer` could not write
            its checkpoints, or transformers rejects an argument.
    """

    def __post_init__(self) -> None:
        reason = "the model would be sharded only when training starts, and its checkpoints would not be safetensors"
        fix = "train with a whole copy of the model per process, or shard the frozen base model: shard_base='fsdp' or "
        raise_if(
            Problem(name, getattr(self, name) or f"{variable}=true", reason, f"{fix}a ZeRO-3 file")
            for name, variable in _SHARDING.items()
            if getattr(self, name) or os.environ.get(variable or "") == "true"
        )
        self.accelerator_config = _accelerator_config(vars(self)["accelerator_config"])
        try:
            super().__post_init__()
        except _ERRORS as error:
            raise InputError(*self._refused(error)) from error

    def _refused(self, error: Exception) -> list[Problem]:
        """Return a problem for each given argument that transformers' error mentions, or one for all arguments."""
        reason, fix = f"transformers refuses it ({type(error).__name__}: {error})", "use another value, or leave it out"
        given = {f.name: getattr(self, f.name) for f in fields(TrainingArguments) if getattr(self, f.name) != f.default}
        named = {name: value for name, value in given.items() if re.search(rf"\b{name}\b", str(error))}
        return [Problem(name, value, reason, fix) for name, value in named.items()] or [
            Problem("arguments", "of the training", reason, "change the values that the error is about")
        ]

    def problems(self) -> list[Problem]:
        """Return the problems of the settings that can be found before anything is loaded."""
        return [
            *reporting_problems(self.report_to),
            *_kernel_problems(self.use_liger_kernel, self.use_cpu),
            *_schedule_problems(self),
            *_optimiser_problems(self),
            *_checkpointing_problems(self.gradient_checkpointing_kwargs or {}),
            *_compilation_problems(self),
            *_worker_problems(self),
            *_hub_problems(self),
            *self._choice_problems(),
        ]

    @property
    def evaluates(self) -> bool:
        """Whether the model is evaluated during training."""
        return self.eval_strategy != "no" or self.eval_on_start

    def _choice_problems(self) -> Iterator[Problem]:
        """Yield a problem for each setting that depends on an evaluation metric."""
        reason, fix = "neither training nor checkpoints depend on an evaluation metric here", "remove it"
        if self.load_best_model_at_end:
            instead = f"{fix}, or use --save_strategy epoch and choose a checkpoint"
            yield Problem("load_best_model_at_end", True, reason, instead)
        if self.save_strategy == "best":
            yield Problem("save_strategy", "best", reason, "use epoch or steps")
        if self.lr_scheduler_type in _BY_METRIC:
            yield Problem("lr_scheduler_type", self.lr_scheduler_type, reason, "use another schedule")
        elif self.metric_for_best_model is not None and not self.load_best_model_at_end:
            yield Problem("metric_for_best_model", self.metric_for_best_model, reason, fix)


def changed_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that differ from their defaults, as plain values for YAML."""
    # Creating another `TrainingArguments` sets up the device again. With another device, this process would leave the
    # process group that it trains with, so the defaults get the same `use_cpu`.
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


def _accelerator_config(value: Any) -> AcceleratorConfig:
    """Return accelerate's configuration, given as a mapping, as JSON or as the path of a JSON file."""
    name, fix = "accelerator_config", "write it as '{\"even_batches\": true}', or name a JSON file"
    config = value
    if not isinstance(value, AcceleratorConfig):
        with from_elsewhere(name, value, "it is not a configuration of accelerate", fix):
            if isinstance(value, str):
                value = parse_json(value) if value.lstrip().startswith("{") else read_json(Path(value))
            config = AcceleratorConfig(**(value or {}))
    accumulation = config.gradient_accumulation_kwargs or {}
    with from_elsewhere(name, value, "accelerate rejects its gradient_accumulation_kwargs", "correct them"):
        GradientAccumulationPlugin(**accumulation)
    if "num_steps" in accumulation:
        reason = "its num_steps would replace gradient_accumulation_steps"
        raise InputError(Problem(name, value, reason, "use --gradient_accumulation_steps"))
    raise_if(replace(problem, argument=f"{name}[{problem.argument!r}]") for problem in value_problems(config))
    return config


def _schedule_problems(args: TrainingArguments) -> list[Problem]:
    """Return a problem if settings of the schedule are invalid or missing, which transformers mostly notices late.

    The schedule is created for a single weight and evaluated at the first and last steps, of 10 if their number is not
    known.
    """
    name, settings = SchedulerType(args.lr_scheduler_type).value, args.lr_scheduler_kwargs or {}
    given: dict[str, Any] = {"lr_scheduler_kwargs": settings} if settings else {"lr_scheduler_type": name}
    fix = f"give lr_scheduler_kwargs the settings of {name!r}: transformers' documentation lists them"
    refused_anyway = name in _BY_METRIC or args.learning_rate < 0
    if refused_anyway or (name.startswith("constant") and not settings):
        return []
    if name.startswith("constant"):
        return [Problem(*given.popitem(), "this schedule has no settings", "leave it out")]
    try:
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
        steps = args.max_steps if args.max_steps > 0 else 10
        schedule = get_scheduler(name, optimiser, args.get_warmup_steps(steps), steps, dict(settings))
        for factor in getattr(schedule, "lr_lambdas", []):
            _ = [factor(step) for step in (0, 1, steps - 1, steps)]
    except Exception as error:  # the schedules check their settings in different ways, or not at all
        return [Problem(*given.popitem(), f"the schedule refuses it ({error})", fix)]
    return []


def _optimiser_problems(args: TrainingArguments) -> list[Problem]:
    """Return a problem if the optimiser rejects `optim_args`, or if they or `optim_target_modules` have no effect."""
    name = OptimizerNames(args.optim).value
    if args.optim_target_modules and not any(part in name for part in ("galore", "apollo")):
        reason = f"it has no effect on {name}"
        return [
            Problem("optim_target_modules", args.optim_target_modules, reason, "leave it out, or use target_modules")
        ]
    if not args.optim_args:
        return []
    fix = "write settings of this optimiser as name=value, or leave it out"
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        kind([torch.zeros(1, requires_grad=True)], **settings)
        without = copy(args)
        without.optim_args = None
        _, others = Trainer.get_optimizer_cls_and_kwargs(without)
    except Exception as error:  # the optimisers check their settings in different ways
        return [Problem("optim_args", args.optim_args, f"{name} refuses it ({error})", fix)]
    if settings == others:
        return [Problem("optim_args", args.optim_args, f"it has no effect on {name}", fix)]
    return []


@dataclass
class _Checkpointing:
    """The settings in `gradient_checkpointing_kwargs`, of PyTorch's `checkpoint` and of transformers."""

    use_reentrant: bool = False
    preserve_rng_state: bool = True
    determinism_check: str = "default"
    debug: bool = False
    early_stop: bool = True
    every_n_layers: int = 1
    offload: bool = False


def _checkpointing_problems(settings: dict[str, Any]) -> list[Problem]:
    """Return the problems of `gradient_checkpointing_kwargs`. Valid ones are tried on a tensor with one element."""
    name, known = "gradient_checkpointing_kwargs", asdict(_Checkpointing())
    if not settings:
        return []
    if unknown := settings.keys() - known:
        return [unknown_name(name, one, known) for one in sorted(unknown)]
    ranges = {"every_n_layers": at_least(1, "there is no such interval")}
    if problems := value_problems(_Checkpointing(**settings), ranges):
        return [replace(problem, argument=f"{name}[{problem.argument!r}]") for problem in problems]
    if settings.get("offload") and not torch.accelerator.is_available():
        return [Problem(name, settings, "there is no GPU from which to offload", "remove offload")]
    if settings.get("determinism_check", "default") not in (checks := ("default", "none")):
        return [unknown_name(f"{name}['determinism_check']", settings["determinism_check"], checks)]
    own = {key: value for key, value in settings.items() if key not in ("every_n_layers", "offload")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of missing settings, and will do so again in training
            checkpoint(torch.nn.Identity(), torch.ones(1, requires_grad=True), **own)
    except Exception as error:
        return [Problem(name, settings, f"PyTorch refuses it ({error})", "correct it, or leave it out")]
    return []


def _compilation_problems(args: TrainingArguments) -> list[Problem]:
    if not args.torch_compile:
        return []
    backend, known = args.torch_compile_backend, [kind.value.lower() for kind in DynamoBackend]
    if backend not in known:
        return [unknown_name("torch_compile_backend", backend, known)]
    try:
        torch.compile(torch.nn.Identity(), backend=backend, mode=args.torch_compile_mode)
    except Exception as error:
        given = f"backend {backend!r}, mode {args.torch_compile_mode!r}"
        fix = "change torch_compile_backend or torch_compile_mode"
        return [Problem("torch_compile", given, f"PyTorch refuses it ({error})", fix)]
    return []


def _worker_problems(args: TrainingArguments) -> list[Problem]:
    names = ("dataloader_persistent_workers", "dataloader_multiprocessing_context")
    reason, fix = "the data is loaded without worker processes", "set --dataloader_num_workers, or remove it"
    given = {name: value for name in names if (value := getattr(args, name))} if not args.dataloader_num_workers else {}
    return [Problem(name, value, reason, fix) for name, value in given.items()]


def batch_problems(args: TrainingArguments, examples: int) -> list[Problem]:
    """Return a problem if there are too few examples for one batch and incomplete batches are dropped."""
    size = args.train_batch_size * args.world_size
    if not args.dataloader_drop_last or examples >= size:
        return []
    reason = f"the {examples} examples do not fill a batch of {size}, so there would be no batch to train on"
    return [Problem("dataloader_drop_last", True, reason, "remove it, or lower per_device_train_batch_size")]


def _hub_problems(args: TrainingArguments) -> list[Problem]:
    """Return a problem if checkpoints should be uploaded to the Hub and could not be."""
    try:
        if args.push_to_hub:
            check_hub("push_to_hub", args.hub_model_id or Path(str(args.output_dir)).absolute().name)
    except InputError as error:
        return list(error.problems)
    return []


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
