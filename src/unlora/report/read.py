"""Read a run's folder into typed values. The files are not trusted; a missing file gives None or an empty value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unlora.benchmarks import OWN_SETS, Benchmark, Measured, Reading, benchmark_of
from unlora.benchmarks.tofu import TofuSchema
from unlora.common.errors import NOT_AVAILABLE, InputError, Problem
from unlora.common.reading import read_json, read_yaml
from unlora.evals import Log, read_log
from unlora.evals.log_format import TASKS, column
from unlora.evals.logs import read_content
from unlora.report.statistics import Estimate, estimate_of
from unlora.runs.folder import (
    ATTACKS,
    CELL_SCORES,
    CONFIG,
    DIFFERENCE,
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


@dataclass(frozen=True)
class Membership:
    """The result of `unlora membership`, or of a benchmark that runs membership attacks.

    Args:
        sizes: number of examples in the sets "forget" and "holdout".
        areas: {model: {attack: area under the ROC curve of the forget set against unseen rows}}. All three models have
            an entry, which is empty if the model was not attacked. That of the unlearned model is never empty.
    """

    sizes: dict[str, int]
    areas: dict[str, dict[str, Measured]]

    @property
    def attacks(self) -> list[str]:
        """The names of the attacks on the unlearned model."""
        return list(self.areas["unlearned"])


@dataclass(frozen=True)
class Attack:
    """The results of one attack in one setting.

    Args:
        name: name of the attack.
        setting: its setting, such as the number of steps.
        models: {model: {metric: value}}. A metric may come with its standard error as `<metric>_se`, or with the ends
            of its interval as `<metric>_low` and `<metric>_high`.
    """

    name: str
    setting: str
    models: dict[str, dict[str, float]]

    @property
    def label(self) -> str:
        """The name and the setting."""
        return f"{self.name}: {self.setting}"

    @property
    def counts_facts(self) -> bool:
        """Whether the attack counts the facts that sampled answers reveal, instead of scoring the forget answers."""
        return any("revealed" in values for values in self.models.values())

    def estimate(self, model: str, metric: str = "forget_probability") -> Estimate | None:
        """Return a metric with its recorded interval or a normal one over draws, or None if it was not measured."""
        values = self.models.get(model, {})
        if metric not in values:
            return None
        if f"{metric}_low" in values:
            return Estimate(values[metric], values[f"{metric}_low"], values[f"{metric}_high"])
        limits = (-1.0, 1.0) if model == DIFFERENCE else (0.0, 1.0)
        return estimate_of(Measured(values[metric], values.get(f"{metric}_se", 0.0)), limits)


@dataclass(frozen=True)
class Attacks:
    """The result of `unlora attack`: the attacks that ran, and for each of the others the reason why it could not."""

    found: list[Attack]
    unavailable: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: the run's folder.
        settings: its configuration, a flat mapping of flags. Absolute paths are cut to their last part.
        train: the trainer's log.
        trained_on: {evaluated set: number of its rows that the run also trained on}; empty if this was not recorded.
        logs: {model: evaluation log in TOFU's format}, for the models (original, unlearned, retrained) that have one.
        benchmark: the benchmark with its own scoring that the models were evaluated on, if any.
        readings: {model: the numbers of this benchmark}, for the models that have a log.
        importance: {module: importance of its rows, or of its rows and columns}.
        membership, attacks: results of `unlora membership` and `unlora attack`, if they were run.
        record: the run's own record.
    """

    folder: Path
    settings: dict[str, Any]
    train: list[dict[str, float]]
    trained_on: dict[str, int]
    logs: dict[str, Log]
    benchmark: Benchmark | None
    readings: dict[str, Reading]
    importance: dict[str, NDArray[np.float64]]
    membership: Membership | None
    attacks: Attacks | None
    record: dict[str, Any]

    @property
    def method(self) -> str:
        """Initialiser and loss, spelled as for `unlora bench`."""
        if not self.settings:  # only a log
            return ""
        return f"{self.settings.get('init', '?')}+{self.settings.get('loss', '?')}"

    def task(self, model: str, name: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the columns of a set in a model's log; empty if the log lacks the set."""
        return self.logs.get(model, {}).get(TASKS[name], {})

    def prompts(self, model: str, name: str) -> list[str]:
        """Return the prompts of a set in a model's log, in the order of the examples."""
        return [prompt for prompt, *_ in column(self.task(model, name), "generated_text")]


def read_run(folder: str | Path, scored: Mapping[str, Path] | None = None) -> Run:
    """Read the folder of a finished `unlora unlearn`.

    Args:
        folder: the run's folder.
        scored: {model: log of a benchmark with its own scoring}. Defaults to the logs in the folder.

    Raises:
        InputError: there is no such run, or a file in it was not written by unlora.
    """
    folder = Path(folder)
    if not is_finished(folder):
        reason, fix = f"it holds no {METRICS}", "name the folder of an `unlora unlearn` that has finished"
        raise InputError(Problem("RUN", str(folder), reason, fix))
    logs = {model: read_log(folder / name) for model, name in EVALUATIONS.items() if (folder / name).is_file()}
    for log in logs.values():
        _check_tokens(folder, log)
    benchmark, readings = _read_benchmark(_scored(folder) if scored is None else scored)
    return Run(
        folder=folder,
        settings=_read(folder / CONFIG, lambda path: _without_folders(read_yaml(path))) or {},
        train=_read(folder / METRICS, lambda path: _numbers(read_json(path)["train"])) or [],
        trained_on=_read(folder / METRICS, lambda path: _whole_numbers(read_json(path).get("trained_on", {}))) or {},
        logs=logs,
        benchmark=benchmark,
        readings=readings,
        importance=_read(folder / IMPORTANCE, _importance) or {},
        membership=_read(folder / MEMBERSHIP, lambda path: _membership(read_json(path))) or _membership_of(readings),
        attacks=_read(folder / ATTACKS, lambda path: _attacks(read_json(path)["attacks"])),
        record=_read(folder / RECORD, lambda path: dict(read_json(path).items())) or {},
    )


def read_log_as_run(path: Path, others: Mapping[str, Path]) -> Run:
    """Read the evaluation log of a model that was unlearned elsewhere, as a run that consists of this log alone.

    Args:
        path: the log, in the format of unlora, TOFU or open-unlearning.
        others: {"original" or "retrained": log to compare it with}.

    Raises:
        InputError: a file is not a log, or the logs are of different benchmarks.
    """
    paths = {"unlearned": path, **others}
    logs: dict[str, Log] = {}
    content = _read(path, read_content)
    single = isinstance(content, dict) and "avg_gt_loss" in content  # a file of one of TOFU's tasks
    benchmark = OWN_SETS if single else _read(path, lambda file: benchmark_of(read_content(file)))
    if isinstance(benchmark, TofuSchema):
        benchmark = OWN_SETS
        found = {model: read_log(file, "RUN") for model, file in paths.items()}
        logs = {model: log for model, log in found.items() if log.keys() & set(TASKS.values())}
        for file, log in zip(paths.values(), found.values(), strict=True):
            _check_tokens(file, log)
        # A file with aggregated values alone has no examples to compute anything from.
        readings = {model: benchmark.read(log) for model, log in found.items() if model not in logs}
    else:
        benchmark, readings = _read_benchmark(paths)
    return Run(
        folder=path,
        settings={},
        train=[],
        trained_on={},
        logs=logs,
        benchmark=benchmark if readings else None,
        readings=readings,
        importance={},
        membership=_membership_of(readings),
        attacks=None,
        record={},
    )


def _scored(folder: Path) -> dict[str, Path]:
    """Return the benchmark's log of each model. `unlora bench` keeps the unlearned model's next to the run's folder."""
    places = {model: [folder / name] for model, name in SCORES.items()}
    places["unlearned"].append(folder.parent / CELL_SCORES)
    found = {model: next((path for path in paths if path.is_file()), None) for model, paths in places.items()}
    return {model: path for model, path in found.items() if path is not None}


def _read_benchmark(paths: Mapping[str, Path]) -> tuple[Benchmark | None, dict[str, Reading]]:
    """Return the benchmark that the logs are of, and the numbers of each model. Files that do not exist are skipped.

    Raises:
        InputError: a file is not a log, or the logs are of different benchmarks or examples.
    """
    retrained = _read(paths["retrained"], read_content) if "retrained" in paths else None

    def read(path: Path) -> tuple[Benchmark, Reading]:
        benchmark = benchmark_of(read_content(path))
        log = _log(path, benchmark)
        reading = benchmark.read(log, None if retrained is None else _log(paths["retrained"], benchmark))
        if not reading.derived and all(value is None for value in reading.values.values()):
            raise ValueError("it has no values")
        return benchmark, reading

    def _log(path: Path, benchmark: Benchmark) -> Any:
        log = read_content(path)  # a log of unlora is used as it is; one of open-unlearning is converted
        return log if {"benchmark", "scores"} & log.keys() else benchmark.read_log(path, "RUN")

    found = {model: pair for model, path in paths.items() if (pair := _read(path, read)) is not None}
    titles = {benchmark.title for benchmark, _ in found.values()}
    # A file with aggregated values alone has no examples.
    examples = {tuple(reading.examples.items()) for _, reading in found.values() if reading.examples}
    if len(titles) > 1 or len(examples) > 1:
        reason = "these logs are not of the same benchmark and examples"
        names = ", ".join(map(str, paths.values()))
        raise InputError(Problem("RUN", names, reason, "evaluate all models in the same way"))
    benchmark = next((benchmark for benchmark, _ in found.values()), None)
    return benchmark, {model: reading for model, (_, reading) in found.items()}


def _membership_of(readings: Mapping[str, Reading]) -> Membership | None:
    """Return the result of the membership attacks that are part of a benchmark."""
    areas = {model: readings[model].areas if model in readings else {} for model in MODELS}
    return Membership(readings["unlearned"].examples, areas) if areas["unlearned"] else None


def _read(path: Path, parse: Callable[[Path], T]) -> T | None:
    """Return the parsed file, or None if it does not exist.

    Raises:
        InputError: the file cannot be parsed.
    """
    from safetensors import SafetensorError

    if not path.is_file():
        return None
    try:
        return parse(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, SafetensorError) as error:
        reason = f"unlora did not write this file ({type(error).__name__}: {error})"
        raise InputError(Problem("RUN", str(path), reason, "write it again, or delete it")) from error


def _without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Cut absolute paths to their last part: a report that is passed on must not reveal the folders of this machine."""

    def shown(value: object) -> object:
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {str(name): shown(value) for name, value in settings.items()}


def _numbers(rows: Iterable[Mapping[str, object]]) -> list[dict[str, float]]:
    """Return the entries of the trainer's log with their numeric values only."""
    return [{str(k): float(v) for k, v in row.items() if isinstance(v, int | float)} for row in rows]


def _whole_numbers(values: Mapping[str, object]) -> dict[str, int]:
    return {str(name): int(str(value)) for name, value in values.items()}


def _importance(path: Path) -> dict[str, NDArray[np.float64]]:
    from safetensors.numpy import load_file

    return {name: values.astype(np.float64) for name, values in load_file(path).items() if values.size}


def _membership(log: Mapping[str, Any]) -> Membership | None:
    areas: dict[str, dict[str, Measured]] = {}
    for model in MODELS:
        metrics = log["metrics"] if model == "unlearned" else log.get(model)
        rows = metrics["membership"].items() if metrics else ()
        areas[model] = {str(name): Measured(float(row["auc"]), float(row["standard_error"])) for name, row in rows}
    sizes = {str(name): int(size) for name, size in log["metrics"]["examples"].items()}
    return Membership(sizes, areas) if areas["unlearned"] else None


def _attacks(report: Mapping[str, Mapping[str, Any]]) -> Attacks:
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
    """Raise `InputError` if the tokens or turns in a log are malformed. `read_log` has checked the rest of the log."""
    for task in set(TASKS.values()) & log.keys():
        losses = log[task].get("gt_token_loss", {})
        rows = [(texts, losses.get(index, [])) for index, texts in log[task].get("gt_tokens", {}).items()]
        if not all(_all_of(str, texts) and _all_of(int | float, row) and len(texts) == len(row) for texts, row in rows):
            reason = f"the tokens of {task} were not written by an evaluation"
            raise InputError(Problem("RUN", str(folder), reason, "evaluate the run again"))
        columns = log[task].get("turns", {}).values()
        turns = [turn for row in columns for turn in (row if isinstance(row, list) else [row])]
        if not all(_all_of(str, turn) and len(turn) == 2 for turn in turns):
            reason = f"the turns of {task} were not written by an evaluation"
            raise InputError(Problem("RUN", str(folder), reason, "evaluate the run again"))


def _all_of(kind: type | UnionType, values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
