"""Types, choices and ranges of the fields of `transformers.TrainingArguments`, without loading torch.

Types and choices are read from its source code, because importing it takes seconds. The ranges are ours: transformers
checks few of them, and some only right before training starts.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from unlora.common.errors import Problem, unknown_name
from unlora.common.reading import parse_json
from unlora.settings.checks import MOST, SEED, Range, at_least, finite_problem, positive

_SOME = at_least(1, "nothing would be done")
_DECAY = Range("a value from 0 up to, but not including, 1", "it is a share", lambda value: 0 <= value < 1)
_INTERVAL = Range(
    "a whole number of updates, or a share of all below 1",
    "there is no such interval",
    lambda value: value > 0 and (value < 1 or value == int(value)),
)
_NOT_NEGATIVE = at_least(0, "it cannot be negative")
RANGES = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), _SOME
    ),
    **dict.fromkeys(("torch_empty_cache_steps", "eval_accumulation_steps", "save_total_limit"), _SOME),
    **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), _SOME),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _INTERVAL),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _DECAY),
    **dict.fromkeys(("max_grad_norm", "eval_delay", "warmup_steps", "dataloader_num_workers"), _NOT_NEGATIVE),
    **dict.fromkeys(("adam_epsilon", "neftune_noise_alpha"), positive()),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    "learning_rate": at_least(0, "it would follow the gradient upwards"),
    "weight_decay": at_least(0, "it would let the weights grow without end"),
    "num_train_epochs": Range("a value above 0, up to 100000", "it would not end", lambda value: 0 < value <= 1e5),
    "max_steps": Range(
        "-1 for no limit, or 1 to 10000000", "it would not end", lambda value: value == -1 or 1 <= value <= 1e7
    ),
    "local_rank": Range("-1, or the rank of a process", "there is no such process", lambda value: -1 <= value <= MOST),
}
# Part of an optimiser's name -> the package that the optimiser needs.
_PACKAGES = {
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "galore": "galore_torch",
    "grokadamw": "grokadamw",
    "lomo": "lomo_optim",
    "schedule_free": "schedulefree",
    "apollo": "apollo_torch",
    "stable_adamw": "optimi",
    "apex": "apex",
    "anyprecision": "torchdistx",
    "xla": "torch_xla",
    "npu": "torch_npu",
    **dict.fromkeys(("bnb", "8bit", "paged", "lion", "ademamix"), "bitsandbytes"),
}


@cache
def field_types() -> dict[str, str]:
    """Return {field: its annotation} of `TrainingArguments`."""
    body = next(node.body for node in _classes("training_args.py") if node.name == "TrainingArguments")
    found = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {node.target.id: ast.unparse(node.annotation) for node in found if isinstance(node.target, ast.Name)}


@cache
def field_choices() -> dict[str, list[str]]:
    """Return {field: its allowed values} of the fields of `TrainingArguments` whose type is an enumeration."""
    classes = [*_classes("training_args.py"), *_classes("trainer_utils.py")]
    enumerations = {
        node.name: [
            str(part.value.value) for part in node.body if isinstance(part, ast.Assign) and _is_text(part.value)
        ]
        for node in classes
        if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases)
    }
    kinds = {name: annotation.split(" | ") for name, annotation in field_types().items()}
    return {name: enumerations[part] for name, parts in kinds.items() for part in parts if part in enumerations}


def inherited_problems(values: Mapping[str, Any]) -> list[Problem]:
    """Check the values of the given fields of `TrainingArguments`. They must have the annotated types."""
    problems = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            problem = finite_problem(name, value)
            problems += [problem] if problem else RANGES[name].problems(name, value) if name in RANGES else []
        elif name.endswith("_kwargs"):
            problems += mapping_problems(name, value)
        elif name in field_choices() and value not in field_choices()[name]:
            problems.append(unknown_name(name, value, field_choices()[name]))
        elif name == "optim":
            problems += _package_problems(value)
    return problems


def mapping_problems(name: str, value: object) -> list[Problem]:
    """Check a setting that must be a mapping, or the text of a JSON object."""
    try:
        found = parse_json(value) if isinstance(value, str) else value
        reason = "it is not a JSON object"
    except ValueError as error:
        found, reason = 0, f"it is not a JSON object ({error})"
    fix = "write it as '{\"name\": 1.0}'"
    return [] if found is None or isinstance(found, dict) else [Problem(name, value, reason, fix)]


def _package_problems(optimiser: str) -> list[Problem]:
    """Return the problem of an optimiser whose package is not installed."""
    package = _PACKAGES.get(optimiser) or next(
        (needed for part, needed in _PACKAGES.items() if part in optimiser), None
    )
    if package is None or find_spec(package) is not None:
        return []
    return [
        Problem("optim", optimiser, f"it needs {package}, which is not installed", "install it, or use adamw_torch")
    ]


def _classes(file: str) -> list[ast.ClassDef]:
    """Parse the classes in a source file of transformers."""
    package = find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    source = (Path(package.origin).parent / file).read_text(encoding="utf-8")
    return [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def _is_text(node: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
