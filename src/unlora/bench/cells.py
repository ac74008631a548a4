"""The cells of a grid, and their files on disk."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unlora.benchmarks.interface import Benchmark
from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.files import write_text
from unlora.common.locks import check_free
from unlora.common.reading import read_yaml
from unlora.runs.folder import CELL_SCORES, EVALUATIONS, REPORT
from unlora.runs.stages import is_whole, recorded_contents
from unlora.settings.names import method_problems

CONFIG, SCORING, RUN, LOG, FAILED = "config.yaml", "scoring.yaml", "run", "log.txt", "failed.txt"
# The file with the hashes of the plugins that the cell depends on, if there are any.
CODE = "plugins.yaml"
# The setting for the retrained model's log.
COMPARED = "retrained"


@dataclass(frozen=True)
class Cell:
    """One run: a method ("vila+ihl"), a split of the benchmark, and a seed.

    Args:
        method: initialiser and loss, optionally with a label.
        split: a split of the benchmark.
        seed: seed of data, models and training.
        folder: folder of the cell.
        evaluated_on: benchmark whose evaluation follows the run; None if `unlora unlearn` itself evaluates.
        on: the cell whose run this one continues from.
    """

    method: str
    split: str
    seed: int
    folder: Path
    evaluated_on: str | None = None
    on: Cell | None = None

    def __str__(self) -> str:
        return f"{self.split} {self.method} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the request has been run and evaluated."""
        return not self.commands

    @property
    def unlearned(self) -> bool:
        """Whether the request has been run."""
        return is_whole(self.folder / RUN, REPORT)

    @property
    def log(self) -> Path:
        """The evaluation log of the unlearned model."""
        return self.folder / RUN / EVALUATIONS["unlearned"] if self.evaluated_on is None else self.folder / CELL_SCORES

    @property
    def failure(self) -> str | None:
        """The reason why the cell failed, or None if it did not."""
        path = self.folder / FAILED
        return path.read_text(encoding="utf-8") if path.exists() else None

    @property
    def commands(self) -> list[list[str]]:
        """The commands that are still to be run, as arguments of `unlora`."""
        run, scores, commands = str(self.folder / RUN), self.folder / CELL_SCORES, []
        if not self.unlearned:
            own = ["unlearn", "--config", str(self.folder / CONFIG), "--output_dir", run]
            commands.append([*own, *consent(self.folder / CONFIG)])
        if self.evaluated_on is not None and not scores.exists():
            evaluate = ["evaluate", "--benchmark", self.evaluated_on, "--config", str(self.folder / SCORING)]
            commands.append([*evaluate, "--on", run, "--log", str(scores), *consent(self.folder / CONFIG)])
        return commands

    def prepare(
        self, flags: Mapping[str, Any], scoring: Mapping[str, Any] | None = None, code: Sequence[str] = ()
    ) -> None:
        """Write the settings of `unlora unlearn` and of the evaluation, and delete what an unfinished run left behind.

        Args:
            flags: settings of `unlora unlearn`. The log of the retrained model may change after a run has finished,
                because results are read with the new log.
            scoring: settings of the evaluation, if it is not part of `unlora unlearn`.
            code: hashes of the plugins that provide the cell's initialiser, losses and benchmark.

        Raises:
            InputError: the run or its evaluation has finished with other settings, or another process is writing to
                the run.
        """
        texts = {CONFIG: yaml.safe_dump(dict(flags), sort_keys=False)}
        if scoring is not None:
            texts[SCORING] = yaml.safe_dump(dict(scoring), sort_keys=False)
        if code:
            texts[CODE] = yaml.safe_dump({"plugin": list(code)})
        check_free(self.folder / RUN)  # a process of an earlier bench that was killed may still be running
        done = {CONFIG: self.unlearned, CODE: self.unlearned, SCORING: (self.folder / CELL_SCORES).exists()}
        for name, text in texts.items():
            path = self.folder / name
            if not done[name]:
                write_text(path, text)
            elif changed := differing(path, text):
                reason = f"it is finished, with other settings than these: {', '.join(changed)}"
                fix = "name a new folder, or delete the cell's"
                raise InputError(Problem("output_dir", str(self.folder), reason, fix))
        if not self.unlearned:
            shutil.rmtree(self.folder / RUN, ignore_errors=True)
            (self.folder / CELL_SCORES).unlink(missing_ok=True)
        if not self.finished:
            (self.folder / FAILED).unlink(missing_ok=True)

    def check_inputs(self, inputs: Mapping[str, str | None]) -> None:
        """Raise `InputError` if the run has finished with another model or other rows.

        Args:
            inputs: {argument: hash of the model or rows that it names now}.
        """
        recorded = recorded_contents(self.folder / RUN)
        recorded["model_name_or_path"] = recorded["model_name_or_path"]["weights"]
        changed = [name for name, value in inputs.items() if recorded.get(name) != value]
        if changed:
            reason = f"it is finished, and what these name has changed since then: {', '.join(changed)}"
            fix = "put back what was there, name a new folder, or delete the cell's"
            raise InputError(Problem("output_dir", str(self.folder), reason, fix))


def consent(path: Path) -> list[str]:
    """Return the flag that allows remote code, if the settings in this file contain it.

    `unlora unlearn` only accepts it on the command line. The settings of a cell or a run can be trusted, because they
    come from the user's own command line.
    """
    allowed = path.exists() and read_yaml(path).get("trust_remote_code") is True
    return ["--trust_remote_code", "true"] if allowed else []


def differing(path: Path, text: str) -> list[str]:
    """Return the names of the settings in which a YAML file and a YAML text differ, except for `COMPARED`."""
    one, other = read_yaml(path) if path.exists() else {}, yaml.safe_load(text)
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name != COMPARED and one.get(name) != other.get(name)]


def grid(
    methods: Sequence[str], splits: Sequence[str], seeds: Iterable[int], folder: Path, benchmark: Benchmark
) -> list[Cell]:
    """Return the cells of all combinations. The outermost loop is over seeds, so that every method soon has a result.

    Args:
        methods: initialiser+loss of each method, optionally with a label.
        splits: splits of the benchmark. Splits that these continue from are added.
        seeds: seeds of data, models and training.
        folder: folder of the bench.
        benchmark: the benchmark.

    Raises:
        InputError: a method is not of the form initialiser+loss@label, or one of the first two does not exist.
    """
    raise_if(problem for method in methods for problem in method_problems(method))
    evaluated_on = None if benchmark.evaluated_by_unlearn else benchmark.name
    cells: dict[tuple[str, str, int], Cell] = {}
    for seed, split, method in itertools.product(seeds, _with_earlier(splits, benchmark.after), methods):
        on = cells[method, benchmark.after[split], seed] if split in benchmark.after else None
        place = folder / "cells" / split / method / f"seed-{seed}"
        cells[method, split, seed] = Cell(method, split, seed, place, evaluated_on, on)
    return list(cells.values())


def _with_earlier(splits: Sequence[str], after: Mapping[str, str]) -> list[str]:
    """Return the splits, each preceded by those that it continues from."""
    found: dict[str, None] = {}
    for split in splits:
        chain = [split]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        found |= dict.fromkeys(reversed(chain))
    return list(found)
