"""The interface of benchmarks: their data and splits, how a model is scored, and what the numbers of a log mean.

A benchmark is a subclass of `Benchmark`, and `register_benchmark` (in `unlora.benchmarks`) gives it a name. Everything
that the rest of unlora knows about a benchmark comes from this class:

- `unlora bench` gets the settings of each request (`request`) and its evaluation (`evaluation`) and the retrained model
  (`retrained`), and reads the logs of the cells (`numbers`).
- `unlora evaluate --benchmark NAME` loads the data (`load`), scores a model (`score`) and writes the log (`write_log`).
- The report and the comparison find the benchmark of a log with `benchmark_of(log)` (in `unlora.benchmarks`), and call
  `benchmark.read(log, retrained_log)`. This returns a `Reading`, which has a `Measured` (value and standard error) for
  each number. `benchmark.metric(name)` has the number's label and its better direction. `benchmark.plane` names the two
  numbers (utility, forgetting) that span the forgetting-utility plane; `reading.get(name)` returns them.
- `unlora ls benchmarks` prints `paper`, `needs`, `splits` and `metrics`.

Importing a benchmark must not import torch: methods that need a model import what they use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unlora.common.errors import InputError, Problem, unknown_name
from unlora.common.files import write_json
from unlora.evals.logs import read_content
from unlora.settings import BenchmarkSettings
from unlora.settings.names import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlora.data import TextFormat
    from unlora.data.sources import Record

# The key of a retrained model that the user gives for all splits.
ALL = "all"
# A log as it is in a JSON file.
Log = dict[str, Any]
Direction = Literal["high", "low", "zero"]


@dataclass(frozen=True)
class Options:
    """The options of `unlora bench` that concern the benchmark itself.

    Args:
        folder: the folder of the bench, with the data that cells share.
        model: the original model (built-in benchmarks make their own).
        data: the benchmark's data: a folder or a dataset on the Hub.
        retrained: {split or "all": evaluation log (.json) of the retrained model, or the model itself}.
    """

    folder: Path
    model: str | None = None
    data: str | None = None
    retrained: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """The meaning of a number.

    Args:
        label: what it is called in tables and on the axes of plots.
        better: "high", "low" or "zero" (the retrained model's value is 0); None if the number can only be judged by
            comparison with the retrained model's value.
        needs: why the number may not be available, and what to do about it.
        limits: its smallest and largest possible value, to which its interval is cut.
    """

    label: str
    better: Direction | None = None
    needs: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Measured:
    """A value and its standard error over the examples, which is 0 if it is unknown.

    If the value is a number of examples, `of` is the total from which they are counted.
    """

    value: float
    standard_error: float = 0.0
    of: int | None = None


@dataclass(frozen=True)
class Reading:
    """The numbers in the log of one model.

    Args:
        values: by name, in the order in which they are shown; None if the log lacks the number.
        examples: number of evaluated examples by set or task.
        derived: numbers computed from `values` that are not shown with them, such as means over tasks.
        areas: the area under the ROC curve by membership attack, if the benchmark has such attacks.
    """

    values: dict[str, Measured | None]
    examples: dict[str, int] = field(default_factory=dict)
    derived: dict[str, Measured] = field(default_factory=dict)
    areas: dict[str, Measured] = field(default_factory=dict)

    def get(self, name: str) -> Measured | None:
        """Return the number of this name, or None if it is unknown."""
        return self.values.get(name, self.derived.get(name))


class Benchmark:
    """A benchmark. Subclasses set the attributes, and override the methods that differ for them.

    `settings` is the dataclass of the evaluation's settings, which become flags of `unlora evaluate`.

    Attributes:
        name: the name under which it is registered, which its logs contain.
        title: its title in the report.
        paper: citation with arXiv number.
        needs: what a user has to provide.
        splits: what can be forgotten, each split after the one that it continues.
        after: {split: the split whose request it continues}.
        metrics: the meaning of each number.
        plane: names of the two numbers (utility, forgetting) that span the forgetting-utility plane.
        tuned: settings of requests that were chosen on this benchmark, by loss or by method ("vila+ihl").
        takes_text_settings: whether prompt format and maximum length are flags of `unlora evaluate` as well.
        evaluated_by_unlearn: whether `unlora unlearn` writes the log itself, in TOFU's format.
    """

    name: str
    title: str = ""
    paper: str = ""
    needs: str = ""
    splits: Sequence[str] = ("forget",)
    after: Mapping[str, str] = {}  # read-only
    metrics: Mapping[str, Metric] = {}
    plane: tuple[str, str] | None = None
    tuned: Mapping[str, Mapping[str, Any]] = {}
    settings: ClassVar[type[Any]] = BenchmarkSettings
    takes_text_settings: bool = True
    evaluated_by_unlearn: bool = False

    # What `unlora bench` runs.

    def problems(self, options: Options) -> list[Problem]:
        """Return the problems of the options. This is called before anything is loaded."""
        return []

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return settings of `unlora unlearn`. Built-in models and data are made on first use."""
        return {"model_name_or_path": options.model, "seed": seed, "importance_seed": seed}

    def tuned_for(self, method: str) -> dict[str, Any]:
        """Return the tuned settings of a method. Those of initialiser+loss take precedence over those of the loss."""
        parts = Method.of(method)
        return {**self.tuned.get(parts.loss, {}), **self.tuned.get(parts.pair, {})}

    def retrained(self, options: Options, split: str, seed: int) -> str | None:
        """Return the log or the folder of the retrained model, if there is one."""
        return options.retrained.get(split, options.retrained.get(ALL))

    def evaluation(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the settings of the evaluation that the benchmark fixes. The user may choose the others."""
        return {"data": options.data}

    # How a model is scored.

    def load(self, settings: Any) -> Any:
        """Load and check the data of the evaluation. This is called before the model is loaded.

        Raises:
            InputError: the data cannot be read or evaluated.
        """
        from unlora.data import load_records

        return load_records(settings.data, argument="data")[: settings.ds_size]

    def rows(self, data: Any) -> Iterable[Record]:
        """Return the rows that a model is evaluated on. A log is only reused for the same rows."""
        rows: Iterable[Record] = data
        return rows

    def score(self, model: PreTrainedModel, text_format: TextFormat, data: Any, settings: Any) -> Log:
        """Evaluate the model and return the log, as plain JSON values.

        Args:
            model: a causal LM, with or without adapters.
            text_format: its tokenizer, and how rows become tokens.
            data: from `load`.
            settings: an instance of `self.settings`.
        """
        raise NotImplementedError(f"the benchmark {self.name!r} must define `score`")

    # How a log is read.

    def owns(self, log: Mapping[str, Any]) -> bool:
        """Return whether the log is of this benchmark."""
        return log.get("benchmark") == self.name

    def read_log(self, path: str | Path, argument: str = "log") -> Log:
        """Read a log. `argument` is the argument that names it, for error messages.

        Raises:
            InputError: the file cannot be read, or is not a log of this benchmark.
        """
        log = read_json(path, argument)
        if not self.owns(log):
            fix = f"give a log of `unlora evaluate --benchmark {self.name}`"
            raise InputError(Problem(argument, str(path), f"it is not a log of {self.name}", fix))
        return log

    def read_retrained(self, path: str, data: Any, settings: Any) -> Log:
        """Read the retrained model's log, checked against the data that is about to be evaluated."""
        return self.read_log(path, "retrained")

    def read(self, log: Log, retrained: Log | None = None) -> Reading:
        """Return the numbers in a log.

        Args:
            log: log of the model to evaluate.
            retrained: log of the retrained model, for numbers that compare with it.

        Raises:
            InputError, ValueError, KeyError, TypeError, AttributeError: it is not a log of this benchmark.
        """
        raise NotImplementedError(f"the benchmark {self.name!r} must define `read`")

    def numbers(self, path: Path, retrained: Path | None = None) -> Reading:
        """Return the numbers in a file; the other file is the retrained model's log."""
        return self.read(self.read_log(path), None if retrained is None else self.read_log(retrained, "retrained"))

    def ranking(self, log: Path, original: Path | None, retrained: Path | None) -> dict[str, float | None]:
        """Return the numbers by which models are ranked for the model of a log; {} if the benchmark has no ranking.

        Args:
            log: log of the model.
            original: log of the model before unlearning.
            retrained: log of the retrained model.
        """
        return {}

    def metric(self, name: str) -> Metric:
        """Return the meaning of a number."""
        return self.metrics.get(name, Metric(name))

    def summary(self, log: Log, retrained: Log | None = None) -> dict[str, Any]:
        """Return what `unlora evaluate --json` prints."""
        values = self.read(log, retrained).values
        return {name: None if measured is None else measured.value for name, measured in values.items()}

    def write_log(self, path: str | Path, log: Log, summary: dict[str, Any]) -> None:
        """Write the log with the name of the benchmark and the summary."""
        write_json(path, {"benchmark": self.name, "metrics": summary, **log})


def read_json(path: str | Path, argument: str) -> Log:
    """Read a mapping from a JSON file.

    Raises:
        InputError: the file does not exist, or does not contain a mapping.
    """
    try:
        log = dict(read_content(path))
    except (OSError, ValueError, TypeError) as error:
        reason = f"cannot be read as a log ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, str(path), reason, "give a log of `unlora evaluate`")) from error
    return log


def needed(options: Options, model_fix: str, data_fix: str) -> list[Problem]:
    """Return a problem for each of model and data that the user has not named but the benchmark needs."""
    given = {"model_name_or_path": (options.model, model_fix), "data": (options.data, data_fix)}
    return [Problem(name, "", "the benchmark needs it", fix) for name, (value, fix) in given.items() if not value]


def unknown_splits(options: Options, known: Sequence[str]) -> list[Problem]:
    """Return a problem for each retrained model that is named for an unknown split."""
    return [unknown_name("retrained", split, known) for split in options.retrained if split not in known]


def built_in_problems(options: Options) -> list[Problem]:
    """Return a problem for each option that a benchmark with built-in models and data does not have."""
    given = {"model_name_or_path": options.model, "data": options.data, "retrained": options.retrained}
    reason = "a built-in benchmark makes its own"
    return [Problem(name, value, reason, "remove it") for name, value in given.items() if value]


def with_set(sets: Mapping[str, Iterable[Record]]) -> list[Record]:
    """Return the rows of all sets, each with the name of its set."""
    return [{"set": name, **row} for name, rows in sets.items() for row in rows]
