"""What a benchmark is: its data and splits, how a model is scored on it, and what the numbers of a log mean.

A benchmark is a subclass of `Benchmark`, and `register_benchmark` (in `unlora.benchmarks`) gives it a name. Everything
that the rest of unlora knows about a benchmark comes from this class:

- `unlora bench` asks for the settings of each request (`request`), of its evaluation (`evaluation`) and for the
  retrained model (`retrained`), and reads the logs of the cells (`numbers`).
- `unlora evaluate --benchmark NAME` loads the data (`load`), scores a model (`score`) and writes the log.
- The report and the comparison find the benchmark of a log with `benchmark_of(log)` (in `unlora.benchmarks`), and call
  `benchmark.read(log, retrained_log)`. The `Reading` that they get has a `Measured` (value and standard error) for each
  number. `benchmark.metric(name)` says how the number is labelled and which direction is better, and `benchmark.plane`
  names the two numbers (utility, forgetting) that span the forgetting-utility plane; `reading.get(name)` finds both.
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlora.data import TextFormat
    from unlora.data.sources import Record

# The key under which a user names one retrained model for all splits.
ALL = "all"
# A log as JSON has it.
Log = dict[str, Any]
Direction = Literal["high", "low", "zero"]


@dataclass(frozen=True)
class Options:
    """What a user of `unlora bench` says about the benchmark itself.

    Args:
        folder: of the bench; data that cells share is kept there.
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
        better: "high", "low" or "zero" (the retrained model's value is 0); None where only a comparison with the
            retrained model's value could tell.
        needs: why the number may not be available, and what to do about it.
        limits: the least and the largest value that it can have, where its interval ends, too.
    """

    label: str
    better: Direction | None = None
    needs: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class Measured:
    """A value and its standard error over the examples, 0 where that is not known.

    A value that counts some of the examples also has `of`, the number of examples that could count.
    """

    value: float
    standard_error: float = 0.0
    of: int | None = None


@dataclass(frozen=True)
class Reading:
    """The numbers in the log of one model.

    Args:
        values: by name, in the order in which they are shown; None where the log cannot give the number.
        examples: by set or task how many examples were evaluated.
        derived: numbers computed from `values` that are not shown beside them, such as means over tasks.
        areas: by membership attack the area under the ROC curve, if the benchmark attacks.
    """

    values: dict[str, Measured | None]
    examples: dict[str, int] = field(default_factory=dict)
    derived: dict[str, Measured] = field(default_factory=dict)
    areas: dict[str, Measured] = field(default_factory=dict)

    def get(self, name: str) -> Measured | None:
        """The number of this name, if it is known."""
        return self.values.get(name, self.derived.get(name))


class Benchmark:
    """A benchmark. Subclasses set the attributes, and override the methods that differ for them.

    `settings` is the dataclass of the evaluation's settings, which become flags of `unlora evaluate`.

    Attributes:
        name: under which it is registered; logs carry it.
        title: what it is called in the report.
        paper: citation with arXiv number.
        needs: what a user has to provide.
        splits: what can be forgotten, each split after the one that it continues from.
        after: {split: the split whose request it continues from}.
        metrics: the meaning of each number.
        plane: names of the two numbers (utility, forgetting) that span the forgetting-utility plane.
        tuned: {loss: settings of requests that were chosen for it on this benchmark}.
        takes_text_settings: whether prompt format and maximum length are flags of `unlora evaluate` as well.
        evaluated_by_unlearn: whether `unlora unlearn` makes the log itself, in TOFU's format.
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
        """Return what is wrong with the options, before anything is loaded."""
        return []

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return settings of `unlora unlearn`; make models and data on first use."""
        return {"model_name_or_path": options.model, "seed": seed, "importance_seed": seed}

    def retrained(self, options: Options, split: str, seed: int) -> str | None:
        """Return the log or the folder of the retrained model, if there is one."""
        return options.retrained.get(split, options.retrained.get(ALL))

    def evaluation(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the settings of the evaluation that the benchmark sets; the others are the user's to set."""
        return {"data": options.data}

    # How a model is scored.

    def load(self, settings: Any) -> Any:
        """Return the evaluated data, checked; this comes before the model is loaded.

        Raises:
            InputError: data that cannot be read or evaluated.
        """
        from unlora.data import load_records

        return load_records(settings.data, argument="data")[: settings.ds_size]

    def rows(self, data: Any) -> Iterable[Record]:
        """Return what a model is asked, row by row: logs of other rows are not reused."""
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

    # What a log says.

    def owns(self, log: Mapping[str, Any]) -> bool:
        """Whether the log is one of this benchmark."""
        return log.get("benchmark") == self.name

    def read_log(self, path: str | Path, argument: str = "log") -> Log:
        """Read a log; `argument` is what the user calls it, for errors.

        Raises:
            InputError: a file that cannot be read, or a log of something else.
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
            log: of the model in question.
            retrained: of the retrained model, for numbers that compare with it.

        Raises:
            InputError, ValueError, KeyError, TypeError, AttributeError: it is not a log of this benchmark.
        """
        raise NotImplementedError(f"the benchmark {self.name!r} must define `read`")

    def numbers(self, path: Path, retrained: Path | None = None) -> Reading:
        """Return the numbers in a file; the other file is the retrained model's log."""
        return self.read(self.read_log(path), None if retrained is None else self.read_log(retrained, "retrained"))

    def ranking(self, log: Path, original: Path | None, retrained: Path | None) -> dict[str, float | None]:
        """Return the numbers that the model of a log is ranked by beside others; empty if there is no ranking.

        Args:
            log: of the model.
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
        InputError: there is no such file, or something else in it.
    """
    try:
        log = dict(read_content(path))
    except (OSError, ValueError, TypeError) as error:
        reason = f"cannot be read as a log ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, str(path), reason, "give a log of `unlora evaluate`")) from error
    return log


def needed(options: Options, model_fix: str, data_fix: str) -> list[Problem]:
    """Return the problems of a benchmark whose model and data the user has to name."""
    given = {"model_name_or_path": (options.model, model_fix), "data": (options.data, data_fix)}
    return [Problem(name, "", "the benchmark needs it", fix) for name, (value, fix) in given.items() if not value]


def unknown_splits(options: Options, known: Sequence[str]) -> list[Problem]:
    """Return the problems of retrained models that are named for splits which do not exist."""
    return [unknown_name("retrained", split, known) for split in options.retrained if split not in known]


def built_in_problems(options: Options) -> list[Problem]:
    """Return the problems of options that a benchmark with its own models and data does not take."""
    given = {"model_name_or_path": options.model, "data": options.data, "retrained": options.retrained}
    reason = "a built-in benchmark makes its own"
    return [Problem(name, value, reason, "remove it") for name, value in given.items() if value]


def with_set(sets: Mapping[str, Iterable[Record]]) -> list[Record]:
    """Return the rows of all sets, each with the name of its set."""
    return [{"set": name, **row} for name, rows in sets.items() for row in rows]
