"""The plan of a bench: every cell with its settings, after all checks that need no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from unlora.bench.cells import COMPARED, RUN, Cell, grid
from unlora.bench.logs import Measurement, References, SharedLogs
from unlora.benchmarks import Benchmark, Options
from unlora.common import plugins
from unlora.common.errors import raise_if, unknown_name
from unlora.common.files import remove_leftovers, unwritable_problems
from unlora.pipeline.request import Request
from unlora.settings import TextConfig, TofuSettings
from unlora.settings.names import Method

Values = Mapping[str, Any]
# (split, seed) -> logs of the models with which these cells are compared.
ReferencesOf = dict[tuple[str, int], References]


@dataclass(frozen=True)
class Plan:
    """What a bench runs.

    The settings of a request come from the preset, the benchmark, its settings for the loss, `shared`, the method and
    `of_method`, in this order: later ones take precedence.

    Args:
        benchmark: the benchmark.
        options: the user's options for the benchmark.
        methods: initialiser+loss of each method, such as "vila+ihl", optionally with a label ("vila+ihl@rank4").
        splits: splits of the benchmark; all of them if empty.
        seeds: seeds of data, models and training.
        preset: settings from a configuration file.
        shared: settings for all requests.
        of_method: {method: settings for its requests}.
        evaluation: settings of the evaluation, if it is not part of `unlora unlearn`.
    """

    benchmark: Benchmark
    options: Options
    methods: Sequence[str]
    splits: Sequence[str]
    seeds: Sequence[int]
    preset: Values = field(default_factory=dict)
    shared: Values = field(default_factory=dict)
    of_method: Mapping[str, Values] = field(default_factory=dict)
    evaluation: Values = field(default_factory=dict)

    def prepare(self) -> tuple[list[Cell], ReferencesOf]:
        """Write the configuration of each cell, and evaluate the models with which the cells are compared.

        Raises:
            InputError: any problem that can be found before training.
        """
        cells = self.cells()
        logs, references = SharedLogs(self.options.folder), ReferencesOf()
        for cell in cells:
            place = cell.split, cell.seed
            given = {**self.preset, **self.benchmark.request(self.options, *place)}
            if place not in references:
                references[place] = self._references(logs, {**given, **self.shared}, *place)
            settings = {**given, **self._of_cell(cell.method)}
            if cell.unlearned:
                request = Request.of(settings)
                cell.check_inputs(logs.inputs(request.model, request.data))
            self._prepare(cell, settings, references[place])
        # These are files of killed processes: `Cell.prepare` has checked that no process is writing to a run.
        remove_leftovers(self.options.folder)
        return cells, references

    def cells(self) -> list[Cell]:
        """Return the cells, after checking everything that needs neither models nor data.

        Raises:
            InputError: any problem that these checks find.
        """
        known = self.benchmark.splits
        raise_if(unknown_name("splits", split, known) for split in self.splits if split not in known)
        raise_if(self.benchmark.problems(self.options))
        cells = grid(self.methods, self.splits or known, self.seeds, self.options.folder, self.benchmark)
        for method in self.methods:  # before any model is trained or evaluated
            raise_if(plugins.unshared_problems(self._choices(method)))
        raise_if(unwritable_problems(self.options.folder, "output_dir"))
        return cells

    def _choices(self, method: str) -> dict[str, str]:
        """Return {kind: chosen name}, for everything that a plugin can provide to a cell."""
        choices = Request.of({"model_name_or_path": "any", **self.preset, **self._of_cell(method)}).choices
        return choices if self.benchmark.evaluated_by_unlearn else {**choices, "benchmark": self.benchmark.name}

    def _of_cell(self, method: str) -> dict[str, Any]:
        parts = Method.of(method)
        own = {**self.shared, "init": parts.init, "loss": parts.loss, **self.of_method.get(method, {})}
        return {**self.benchmark.tuned_for(method), **own}

    def _evaluation(self, split: str, seed: int) -> dict[str, Any]:
        return {**self.benchmark.evaluation(self.options, split, seed), **self.evaluation}

    def _references(self, logs: SharedLogs, given: Values, split: str, seed: int) -> References:
        """Return the logs of the original and the retrained model, evaluated in the same way as the cells."""
        request = Request.of(given)
        settings = self._evaluation(split, seed)
        if self.benchmark.evaluated_by_unlearn:
            kinds: dict[Any, Any] = {TofuSettings: request.evaluation, TextConfig: request.data}
            settings = {one.name: getattr(part, one.name) for kind, part in kinds.items() for one in fields(kind)}
        retrained = self.benchmark.retrained(self.options, split, seed)
        known = request.evaluation.original_log
        found = logs.references(Measurement(self.benchmark, settings), request.model, retrained, known)
        self.benchmark.numbers(found["original"], found.get("retrained"))  # raises unless the two can be compared
        return found

    def _prepare(self, cell: Cell, settings: dict[str, Any], logs: References) -> None:
        """Write the cell's configurations, and check its request unless it has been run."""
        retrained = {COMPARED: str(logs["retrained"])} if "retrained" in logs else {}
        evaluation = None
        if self.benchmark.evaluated_by_unlearn:
            settings |= {"original_log": str(logs["original"]), **retrained}
        else:
            evaluation = self._evaluation(cell.split, cell.seed) | retrained
        on = {} if cell.on is None else {"on": str(cell.on.folder / RUN)}
        cell.prepare({**settings, **on}, evaluation, plugins.hashes_of(self._choices(cell.method)))
        if not cell.unlearned:  # without `on`, because the run that it names does not exist yet
            Request.of({**settings, "output_dir": str(cell.folder / RUN)}).check()
