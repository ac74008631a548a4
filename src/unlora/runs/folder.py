"""A run on disk: the names of the files in its folder, and its settings.

Three models appear in the files of a run: the "original" model before unlearning, the "unlearned" model, and the
"retrained" model, which was trained without the forget set.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unlora.common.errors import InputError, Problem, from_elsewhere, raise_if
from unlora.common.reading import read_yaml
from unlora.models.hashes import ADAPTER_WEIGHTS
from unlora.runs.stages import lost_settings
from unlora.settings import EvalConfig, ModelConfig
from unlora.settings.data import ForgetData, HoldoutData, RetainData
from unlora.settings.training import DISTILLING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

MODELS = ("original", "unlearned", "retrained")
# In attack results and tables of models, the key of the difference between the last two models.
DIFFERENCE = "unlearned_minus_retrained"

# The files that `unlora unlearn` writes.
CONFIG = "config.yaml"
IMPORTANCE = "importance.safetensors"
ADAPTER = "adapter"
METRICS = "metrics.json"
SAMPLES = "samples.jsonl"
FORGOTTEN = "forgotten.json"
RECORD = "record.json"
REPORT = "report.html"
# Model -> its evaluation log.
EVALUATIONS = {model: f"eval_{model}.json" for model in MODELS}

# The files of `unlora unlearn` whose hashes are in the record, besides the adapter.
EVIDENCE = (*EVALUATIONS.values(), METRICS, SAMPLES, FORGOTTEN)

# The files that later commands add. Model -> its log of a benchmark that `unlora unlearn` does not evaluate (MUSE,
# WMDP).
SCORES = {model: f"scores_{model}.json" for model in MODELS}
# `unlora bench` writes the unlearned model's log of such a benchmark next to the run, in the folder of the cell.
CELL_SCORES = "scores.json"
MEMBERSHIP = "membership.json"
ATTACKS = "attacks.json"

# In the record, the key of the adapter that the run started from, if an adapter was named as the model.
START_ADAPTER = "start_adapter"

# Settings that a request does not inherit from the run it continues: its data, its paths, and what the user permitted.
_NOT_INHERITED = {name for kind in (ForgetData, RetainData, HoldoutData) for name in kind.__dataclass_fields__}
_NOT_INHERITED |= {name for name in EvalConfig.__dataclass_fields__ if name == "eval_data" or name.endswith("_name")}
_NOT_INHERITED |= {"on", "forget_names", "importance_file", "original_log", "retrained", "trust_remote_code"}
_NOT_INHERITED |= {
    "report_to",
    "plugin",
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
}
# (settings, their dependents): a request that gives one of the settings inherits none of the dependents. Another loss
# or start has other settings and defaults, and only one setting of the training length applies.
_LENGTH = {"num_train_epochs", "max_steps", "until_taught"}
_DEPENDENTS = (
    ({"loss"}, {"loss_kwargs", "retain_loss", "alternate_key", "teacher", *DISTILLING, *_LENGTH}),
    ({"init"}, {"learning_rate"}),
    (_LENGTH, _LENGTH),
)
_STOPPING = {"stop_every", "stop_statistic", "stop_auc"}
# Settings that can be the path of a file or a folder.
_PATHS = {"model_name_or_path", "tokenizer_name_or_path", "on", "importance_file", "original_log", "retrained"}
_PATHS |= {"forget_data", "retain_data", "holdout_data", "eval_data"}


def is_finished(run: str | Path) -> bool:
    """Return whether the run is finished. The metrics are written after everything they are computed from."""
    return (Path(run) / METRICS).is_file()


def check_adapter(run: str | Path, argument: str = "RUN") -> None:
    """Raise `InputError` unless the run has exported its adapter."""
    raise_if(_adapter_problems(run, argument))


def _adapter_problems(run: str | Path, argument: str) -> list[Problem]:
    if (Path(run) / ADAPTER / ADAPTER_WEIGHTS).is_file():
        return []
    reason, fix = "it has no exported adapter", "name the folder of an `unlora unlearn` that has finished"
    return [Problem(argument, str(run), reason, fix)]


def saved_settings(run: str | Path, argument: str = "on") -> dict[str, Any]:
    """Return all settings of a run as a flat mapping of flags to values."""
    fix = "name the folder of an earlier `unlora unlearn`"
    with from_elsewhere(argument, str(run), f"its {CONFIG} cannot be read", fix):
        return dict(read_yaml(Path(run) / CONFIG))


def located_settings(run: str | Path, argument: str = "on") -> dict[str, Any]:
    """Return all settings of a run, with relative paths resolved from the current folder.

    The paths in the settings are relative to the folder in which the run was started, which may not be the current one.
    A path that exists from the current folder is kept, because the run and its files may have been moved together.
    """
    values = saved_settings(run, argument)
    started_in = _started_in(Path(run), values)
    for name in _PATHS & values.keys():
        value = values[name]
        if isinstance(value, str) and started_in and not os.path.exists(value) and os.path.exists(started_in / value):
            values[name] = os.path.relpath(started_in / value)
    return values


def _started_in(run: Path, values: Mapping[str, Any]) -> Path | None:
    """Return the folder in which a run was started, or None if its `output_dir` does not tell."""
    output = Path(str(values.get("output_dir")))
    path = run.resolve()
    if output.is_absolute() or ".." in output.parts or path.parts[-len(output.parts) :] != output.parts:
        return None
    return path.parents[len(output.parts) - 1]


def saved_model(run: str | Path, argument: str = "RUN", trust_remote_code: bool = False) -> ModelConfig:
    """Return the model in a run's configuration, without the adapter of the run that it continues.

    Args:
        run: the run's folder, which may come from somebody else.
        argument: the argument that names the run, for error messages.
        trust_remote_code: whether the user allows the model's own code to run. The run's own setting is ignored.
    """
    values = located_settings(run, argument) | {"on": None, "trust_remote_code": trust_remote_code}
    return checked_settings(ModelConfig, values, run, argument)


def checked_settings(kind: type[T], values: Mapping[str, Any], run: str | Path, argument: str = "RUN") -> T:
    """Return the settings dataclass `kind`, filled from a run's configuration and checked.

    Raises:
        InputError: a setting is missing or has an invalid value.
    """
    path = str(Path(run) / CONFIG)
    fix = "put the file of that run back, or name another run"
    with from_elsewhere(argument, path, "unlora did not write this file", fix):
        settings: Any = settings_of(kind, values)
        problems = settings.problems()
    raise_if(Problem(argument, path, f"{p.argument}={p.value!r}: {p.reason}", f"{fix}, or {p.fix}") for p in problems)
    checked: T = settings
    return checked


def continued_settings(run: str, chosen: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings that a request inherits from the run it continues, without those of its data and paths.

    Args:
        run: the run's folder.
        chosen: names of the settings that the user gives. Settings that depend on one of them are not inherited either.
    """
    saved = located_settings(run)
    if lost := lost_settings(Path(run), saved, "on"):  # a YAML file that was cut off may still be valid
        reason = f"its {CONFIG} lacks settings that the run was started with: {', '.join(lost)}"
        raise InputError(Problem("on", run, reason, "put the file of that run back, or name another run"))
    left_out = {*_NOT_INHERITED, *chosen}
    left_out |= {name for settings, dependents in _DEPENDENTS if settings & {*chosen} for name in dependents}
    if "holdout_data" not in chosen:
        left_out |= _STOPPING
    # Defaults are left out, because those of a benchmark may differ, such as a smaller batch size for longer texts.
    defaults = {name: field.default for name, field in EvalConfig.__dataclass_fields__.items()}
    left_out |= {name for name, value in defaults.items() if saved.get(name) == value}
    return {name: value for name, value in saved.items() if name not in left_out}


def continued_problems(model: ModelConfig) -> list[Problem]:
    """Return the problems of the run `model.on`: it must have an adapter, which was made for the same model."""
    if model.on is None:
        return []
    if problems := _adapter_problems(model.on, "on"):
        return problems
    values = {name: getattr(model, name) for name in ("model_name_or_path", "model_revision")}
    theirs = located_settings(model.on)
    return [
        Problem(name, value, f"the adapter in {model.on} was made for {theirs.get(name)!r}", "remove it")
        for name, value in values.items()
        if value != theirs.get(name) and not _same_folder(value, str(theirs.get(name)))
    ]


def settings_of(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the settings dataclass `kind`, filled with those of the `values` that are fields of it."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(one).resolve() == Path(other).resolve()
