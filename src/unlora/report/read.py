"""What a run folder holds, typed; what is not there is None or empty. Nothing in the files is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from unlora.config import CONFIG, MEMBERSHIP
from unlora.errors import InputError, Problem
from unlora.evals import Log, read_log
from unlora.evals.tofu import TASKS

T = TypeVar("T")
# The files of a run that this reads, beside the configuration.
METRICS, IMPORTANCE, RECORD = "metrics.json", "importance.safetensors", "record.json"
ATTACKS = "attacks.json"
# Model -> its evaluation log; the order in which models are shown.
LOGS = {"original": "eval_before.json", "unlearned": "eval_after.json", "retrained": "eval_retrained.json"}


@dataclass(frozen=True)
class Area:
    """How well one membership attack tells the forget set from unseen rows: area under the ROC curve."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Membership:
    """What `unlora membership` found.

    Args:
        sizes: examples by set, forget and holdout.
        areas: by attack, under the unlearned model.
        retrained: the same under the retrained model; empty if it is not known.
    """

    sizes: dict[str, int]
    areas: dict[str, Area]
    retrained: dict[str, Area]


@dataclass(frozen=True)
class Attack:
    """One attack in one setting: {model: {metric: value}}, and standard errors under `<metric>_se`."""

    name: str
    setting: str
    models: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Attacks:
    """What `unlora attack` found, and why some attacks were not possible."""

    found: list[Attack]
    unavailable: dict[str, str]


@dataclass(frozen=True)
class Token:
    """A token of an answer: its text, and its probability under each model that is known."""

    text: str
    probability: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: where it is.
        settings: its configuration, one flat mapping of flags; absolute paths are cut to their last part.
        train: the trainer's log.
        logs: evaluation logs by model (original, unlearned, retrained), those that are there.
        importance: by module the importance of its rows (or rows and columns).
        membership, attacks, record: what later commands, and the run itself, left.
    """

    folder: Path
    settings: dict[str, Any]
    train: list[dict[str, float]]
    logs: dict[str, Log]
    importance: dict[str, NDArray[np.float64]]
    membership: Membership | None
    attacks: Attacks | None
    record: dict[str, Any]

    @property
    def method(self) -> str:
        """Initialiser and loss, as `unlora bench` spells them."""
        return f"{self.settings.get('init', '?')}+{self.settings.get('loss', 'default loss')}"

    def task(self, model: str, name: str) -> Mapping[str, Mapping[str, Any]]:
        """The columns of a set in a model's log; empty where there are none."""
        return self.logs.get(model, {}).get(TASKS[name], {})


def read_run(folder: str | Path) -> Run:
    """Reads the folder of a finished `unlora unlearn`.

    Raises:
        InputError: no such run, or a file in it that unlora did not write.
    """
    folder = Path(folder)
    if not (folder / METRICS).is_file():
        reason, fix = f"it holds no {METRICS}", "name the folder of an `unlora unlearn` that has finished"
        raise InputError(Problem("RUN", str(folder), reason, fix))
    logs = {model: read_log(folder / name) for model, name in LOGS.items() if (folder / name).is_file()}
    for log in logs.values():
        _check_tokens(folder, log)
    return Run(
        folder=folder,
        settings=_read(folder / CONFIG, lambda text: _placeless(_mapping(yaml.safe_load(text)))) or {},
        train=_read(folder / METRICS, lambda text: _numbers(json.loads(text)["train"])) or [],
        logs=logs,
        importance=_read_importance(folder / IMPORTANCE),
        membership=_read(folder / MEMBERSHIP, lambda text: _membership(json.loads(text))),
        attacks=_read(folder / ATTACKS, lambda text: _attacks(json.loads(text)["attacks"])),
        record=_read(folder / RECORD, lambda text: _mapping(json.loads(text))) or {},
    )


def _read(path: Path, parsed: Callable[[str], T]) -> T | None:
    """What a file says, or None where there is none."""
    if not path.is_file():
        return None
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = f"it is not what unlora writes ({type(error).__name__}: {error})"
        raise InputError(Problem("RUN", str(path), reason, "write it again, or delete it")) from error


def _placeless(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of paths the last part alone: a page is shown to people who need not know where things lie on the machine."""
    paths = {name for name, value in settings.items() if isinstance(value, str) and Path(value).is_absolute()}
    return {name: Path(value).name if name in paths else value for name, value in settings.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): part for key, part in value.items()}


def _numbers(rows: Any) -> list[dict[str, float]]:
    """The numbers in the trainer's log."""
    return [{str(k): float(v) for k, v in row.items() if isinstance(v, int | float)} for row in rows]


def _read_importance(path: Path) -> dict[str, NDArray[np.float64]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        return {}
    try:
        return {name: values.astype(np.float64) for name, values in load_file(path).items() if values.size}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"cannot be read as safetensors ({error})"
        raise InputError(Problem("RUN", str(path), reason, "write it again, or delete it")) from error


def _membership(log: Any) -> Membership:
    def areas(metrics: Any) -> dict[str, Area]:
        rows = metrics["membership"].items()
        return {str(name): Area(float(row["auc"]), float(row["standard_error"])) for name, row in rows}

    sizes = {str(name): int(size) for name, size in log["metrics"]["examples"].items()}
    return Membership(sizes, areas(log["metrics"]), areas(log["retrained"]) if log.get("retrained") else {})


def _attacks(report: Any) -> Attacks:
    found, unavailable = [], {}
    for name, settings in report.items():
        if "not available" in settings:
            unavailable[str(name)] = str(settings["not available"])
            continue
        for setting, models in settings.items():
            known = {str(m): {str(k): float(v) for k, v in metrics.items()} for m, metrics in models.items() if metrics}
            found.append(Attack(str(name), str(setting), known))
    return Attacks(found, unavailable)


def _check_tokens(folder: Path, log: Log) -> None:
    """Refuses tokens that are not those of an evaluation; the rest has been checked with the log."""
    for task in set(TASKS.values()) & log.keys():
        columns = log[task]
        losses = columns.get("gt_token_loss", {})
        tokens = all(
            _texts(texts) and isinstance(losses.get(index), list) and len(losses[index]) == len(texts)
            for index, texts in columns.get("gt_tokens", {}).items()
        )
        numbers = all(isinstance(value, int | float) for row in losses.values() for value in row)
        if not (tokens and numbers):
            reason = f"the tokens of {task} are not those of an evaluation"
            raise InputError(Problem("RUN", str(folder), reason, "evaluate again"))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)
