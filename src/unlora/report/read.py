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

from unlora.common.errors import NOT_AVAILABLE, InputError, Problem
from unlora.evals import Log, read_log
from unlora.evals.tofu import TASKS
from unlora.report.scores import Scores, parse_scores
from unlora.report.statistics import Estimate, Measured
from unlora.runs.folder import (
    ATTACKS,
    CONFIG,
    EVALUATIONS,
    IMPORTANCE,
    MEMBERSHIP,
    METRICS,
    MODELS,
    RECORD,
    SCORES,
    is_finished,
)

T = TypeVar("T")
# What `unlora bench` calls the log of a scoring command, in the folder that holds the run.
BENCH_SCORES = "scores.json"


@dataclass(frozen=True)
class Membership:
    """What `unlora membership` found, or of MUSE's log the same.

    Args:
        sizes: examples by set, forget and holdout.
        areas: by attack the area under the ROC curve of the forget set against unseen rows, of the unlearned model.
        original, retrained: the same under these models; empty if not known.
    """

    sizes: dict[str, int]
    areas: dict[str, Measured]
    original: dict[str, Measured]
    retrained: dict[str, Measured]

    def by_model(self) -> dict[str, dict[str, Measured]]:
        """The areas of each model, in the order in which models are shown."""
        return {"original": self.original, "unlearned": self.areas, "retrained": self.retrained}


@dataclass(frozen=True)
class Attack:
    """One attack in one setting: {model: {metric: value}}, and standard errors under `<metric>_se`."""

    name: str
    setting: str
    models: dict[str, dict[str, float]]

    def estimate(self, model: str, metric: str = "forget_probability") -> Estimate | None:
        """With its interval over draws, normal; None where it was not measured."""
        values = self.models.get(model, {})
        if metric not in values:
            return None
        return Measured(values[metric], values.get(f"{metric}_se", 0.0)).estimate()


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
        scores: the same of MUSE's or the harness's command.
        importance: by module the importance of its rows (or rows and columns).
        membership, attacks, record: what later commands, and the run itself, left.
    """

    folder: Path
    settings: dict[str, Any]
    train: list[dict[str, float]]
    logs: dict[str, Log]
    scores: dict[str, Scores]
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


def read_run(folder: str | Path, scored: Mapping[str, Path] | None = None) -> Run:
    """Reads the folder of a finished `unlora unlearn`.

    Args:
        folder: where it is.
        scored: by model the logs of MUSE's or the harness's command, where they are not in the folder.

    Raises:
        InputError: no such run, or a file in it that unlora did not write.
    """
    folder = Path(folder)
    if not is_finished(folder):
        reason, fix = f"it holds no {METRICS}", "name the folder of an `unlora unlearn` that has finished"
        raise InputError(Problem("RUN", str(folder), reason, fix))
    logs = {model: read_log(folder / name) for model, name in EVALUATIONS.items() if (folder / name).is_file()}
    for log in logs.values():
        _check_tokens(folder, log)
    scores = _read_scores(_scored(folder) if scored is None else scored)
    membership = _read(folder / MEMBERSHIP, lambda text: _membership(json.loads(text)))
    return Run(
        folder=folder,
        settings=_read(folder / CONFIG, lambda text: _placeless(_mapping(yaml.safe_load(text)))) or {},
        train=_read(folder / METRICS, lambda text: _numbers(json.loads(text)["train"])) or [],
        logs=logs,
        scores=scores,
        importance=_read_importance(folder / IMPORTANCE),
        membership=membership or _membership_of(scores),
        attacks=_read(folder / ATTACKS, lambda text: _attacks(json.loads(text)["attacks"])),
        record=_read(folder / RECORD, lambda text: _mapping(json.loads(text))) or {},
    )


def _scored(folder: Path) -> dict[str, Path]:
    """The logs in the folder; a bench keeps the run's own beside it."""
    places = {model: [folder / name] for model, name in SCORES.items()}
    places["unlearned"].append(folder.parent / BENCH_SCORES)
    found = {model: next((path for path in paths if path.is_file()), None) for model, paths in places.items()}
    return {model: path for model, path in found.items() if path is not None}


def _read_scores(paths: Mapping[str, Path]) -> dict[str, Scores]:
    retrained = _read(paths["retrained"], json.loads) if "retrained" in paths else None
    read = {model: _read(path, lambda text: parse_scores(json.loads(text), retrained)) for model, path in paths.items()}
    found = {model: scores for model, scores in read.items() if scores is not None}
    if len({(scores.benchmark, tuple(scores.examples.items())) for scores in found.values()}) > 1:
        reason, fix = "they are not of the same benchmark and examples", "measure all models in the same way"
        raise InputError(Problem("RUN", ", ".join(map(str, paths.values())), reason, fix))
    return found


def _membership_of(scores: Mapping[str, Scores]) -> Membership | None:
    """MUSE's log has the areas that its privacy leakage is made of."""
    areas = {model: scores[model].areas if model in scores else {} for model in MODELS}
    if not areas["unlearned"]:
        return None
    return Membership(scores["unlearned"].examples, areas["unlearned"], areas["original"], areas["retrained"])


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
    def areas(metrics: Any) -> dict[str, Measured]:
        rows = metrics["membership"].items()
        return {str(name): Measured(float(row["auc"]), float(row["standard_error"])) for name, row in rows}

    sizes = {str(name): int(size) for name, size in log["metrics"]["examples"].items()}
    original, retrained = (areas(log[model]) if log.get(model) else {} for model in ("original", "retrained"))
    return Membership(sizes, areas(log["metrics"]), original, retrained)


def _attacks(report: Any) -> Attacks:
    found, unavailable = [], {}
    for name, settings in report.items():
        if NOT_AVAILABLE in settings:
            unavailable[str(name)] = str(settings[NOT_AVAILABLE])
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
