"""A run on disk: the name of every file in its folder, its settings, and which of its stages are finished.

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
# In the results of attacks and in tables of models: the difference of the last two.
DIFFERENCE = "unlearned_minus_retrained"

# What `unlora unlearn` writes.
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

# What later commands add. Model -> its log of a benchmark that `unlora unlearn` does not evaluate (MUSE, WMDP).
SCORES = {model: f"scores_{model}.json" for model in MODELS}
# In `unlora bench`, the unlearned model's log of such a benchmark is beside the run, in the folder of the cell.
CELL_SCORES = "scores.json"
MEMBERSHIP = "membership.json"
ATTACKS = "attacks.json"

# In the record, the adapter that the model had before the run, if an adapter was named as the model.
START_ADAPTER = "start_adapter"

# Settings of a run that a later request does not take over: what names its data and its place, and what the user
# allowed it.
_OWN = {name for kind in (ForgetData, RetainData, HoldoutData) for name in kind.__dataclass_fields__}
_OWN |= {name for name in EvalConfig.__dataclass_fields__ if name == "eval_data" or name.endswith("_name")}
_OWN |= {"on", "forget_names", "importance_file", "original_log", "retrained", "trust_remote_code", "report_to"}
_OWN |= {
    "plugin",
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
}
# Settings that only suit the first ones: another loss has other settings and defaults, and one length of the
# training rules.
_LENGTH = {"num_train_epochs", "max_steps", "until_taught"}
_GOES_WITH = (
    ({"loss"}, {"loss_kwargs", "retain_loss", "alternate_key", "teacher", *DISTILLING, *_LENGTH}),
    (_LENGTH, _LENGTH),
    ({"retain_samples", "retain_convergence"}, {"retain_samples", "retain_convergence"}),
)
_STOPPING = {"stop_every", "stop_statistic", "stop_auc"}
# Settings that can name a file or a folder.
_PLACES = {"model_name_or_path", "tokenizer_name_or_path", "on", "importance_file", "original_log", "retrained"}
_PLACES |= {"forget_data", "retain_data", "holdout_data", "eval_data"}


def is_finished(run: str | Path) -> bool:
    """Return whether the run is finished: its metrics are written after everything that they are computed from."""
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
    """Return all settings of a run, as one flat mapping of flags."""
    fix = "name the folder of an earlier `unlora unlearn`"
    with from_elsewhere(argument, str(run), f"its {CONFIG} cannot be read", fix):
        return dict(read_yaml(Path(run) / CONFIG))


def located_settings(run: str | Path, argument: str = "on") -> dict[str, Any]:
    """Return all settings of a run, with the paths in them as they are from the current folder.

    A run names its files from the folder in which it was started. The current folder may be another one. What is here
    under such a name comes first, because the folders may have been moved together.
    """
    values = saved_settings(run, argument)
    started_in = _started_in(Path(run), values)
    for name in _PLACES & values.keys():
        value = values[name]
        if isinstance(value, str) and started_in and not os.path.exists(value) and os.path.exists(started_in / value):
            values[name] = os.path.relpath(started_in / value)
    return values


def _started_in(run: Path, values: Mapping[str, Any]) -> Path | None:
    """Return the folder in which a run was started: that from which its `output_dir` leads to the run."""
    output = Path(str(values.get("output_dir")))
    place = run.resolve()
    if output.is_absolute() or ".." in output.parts or place.parts[-len(output.parts) :] != output.parts:
        return None
    return place.parents[len(output.parts) - 1]


def saved_model(run: str | Path, argument: str = "RUN", trust_remote_code: bool = False) -> ModelConfig:
    """Return the model of a run, as its configuration names it, on its own: without the run that it continues from.

    Args:
        run: its folder, which may be a stranger's.
        argument: what the user calls it, for errors.
        trust_remote_code: whether the user allows the model's own code to run. What the run says about it is ignored.
    """
    values = located_settings(run, argument) | {"on": None, "trust_remote_code": trust_remote_code}
    return checked_settings(ModelConfig, values, run, argument)


def checked_settings(kind: type[T], values: Mapping[str, Any], run: str | Path, argument: str = "RUN") -> T:
    """Return one of the settings dataclasses, filled from a run's configuration.

    Raises:
        InputError: a setting is missing, or has a value that no run could have had.
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
    """Return the settings that a request takes over from the run it continues: all but those of its own data and place.

    Args:
        run: the run's folder.
        chosen: settings that the user gives. Those that go with one of them are not taken over either.
    """
    saved = located_settings(run)
    if lost := lost_settings(Path(run), saved, "on"):  # the rest of a file that is cut off can be read
        reason = f"its {CONFIG} lacks settings that the run was started with: {', '.join(lost)}"
        raise InputError(Problem("on", run, reason, "put the file of that run back, or name another run"))
    left_out = {*_OWN, *chosen, *(name for first, names in _GOES_WITH if first & {*chosen} for name in names)}
    if "holdout_data" not in chosen:
        left_out |= _STOPPING
    # A benchmark may have another default than the evaluation in a run, such as a smaller batch for its longer texts.
    usual = {name: field.default for name, field in EvalConfig.__dataclass_fields__.items()}
    left_out |= {name for name, value in usual.items() if saved.get(name) == value}
    return {name: value for name, value in saved.items() if name not in left_out}


def continued_problems(model: ModelConfig) -> list[Problem]:
    """Check the run that `model.on` names: it needs an adapter, and the adapter must be for the same model."""
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
    """Return one of the settings dataclasses, filled with those of `values` that belong to it."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(one).resolve() == Path(other).resolve()
