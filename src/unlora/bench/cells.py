"""The cells of a grid, and what is left of each on disk."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unlora.benchmarks.interface import Benchmark
from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.common.files import write_text
from unlora.importance import INITIALISERS
from unlora.losses.table import LOSSES
from unlora.runs.folder import EVALUATIONS, METRICS, is_finished

CONFIG, SCORING, RUN, LOG, FAILED = "config.yaml", "scoring.yaml", "run", "log.txt", "failed.txt"
# The log of the command that scores the run, in the cell's folder.
SCORE = "scores.json"

# The flag that names the retrained model's log.
COMPARED = "retrain_log"


@dataclass(frozen=True)
class Cell:
    """One run: a method ("vila+ihl"), a split of the benchmark, and a seed.

    Args:
        method: initialiser and loss.
        split: of the benchmark.
        seed: of everything.
        folder: where it is kept.
        evaluated_on: the benchmark whose evaluation follows the run; None if `unlora unlearn` evaluates itself.
        on: the cell whose request this one continues from.
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
        """Whether the request has been run and measured."""
        return not self.commands

    @property
    def unlearned(self) -> bool:
        """Whether the request has been run; the file appears whole, and last of all."""
        return is_finished(self.folder / RUN)

    @property
    def log(self) -> Path:
        """What was measured after unlearning."""
        return self.folder / RUN / EVALUATIONS["unlearned"] if self.evaluated_on is None else self.folder / SCORE

    @property
    def failure(self) -> str | None:
        """Why the run failed, if it did."""
        path = self.folder / FAILED
        return path.read_text(encoding="utf-8") if path.exists() else None

    @property
    def commands(self) -> list[list[str]]:
        """What is still to be run, as arguments of `unlora`."""
        run, scores, commands = str(self.folder / RUN), self.folder / SCORE, []
        if not self.unlearned:
            commands.append(["unlearn", "--config", str(self.folder / CONFIG), "--output_dir", run])
        if self.evaluated_on is not None and not scores.exists():
            evaluate = ["evaluate", "--benchmark", self.evaluated_on, "--config", str(self.folder / SCORING)]
            commands.append([*evaluate, "--on", run, "--log", str(scores)])
        return commands

    def prepare(self, flags: Mapping[str, Any], scoring: Mapping[str, Any] | None = None) -> None:
        """Writes the flags of `unlora unlearn` and of the scoring command, and clears what an unfinished run left.

        A finished run may have been compared with another retrained model, or with none: its results are read anew.

        Raises:
            InputError: a step is finished, with other flags.
        """
        texts = {CONFIG: yaml.safe_dump(dict(flags), sort_keys=False)}
        if scoring is not None:
            texts[SCORING] = yaml.safe_dump(dict(scoring), sort_keys=False)
        products = {CONFIG: self.folder / RUN / METRICS, SCORING: self.folder / SCORE}
        for name, text in texts.items():
            path = self.folder / name
            if not products[name].exists():
                write_text(path, text)
            elif changed := differing(path, text):
                reason = f"it is finished, with other settings than these: {', '.join(changed)}"
                fix = "name a new folder, or delete the cell's"
                raise InputError(Problem("output_dir", str(self.folder), reason, fix))
        if not self.unlearned:
            shutil.rmtree(self.folder / RUN, ignore_errors=True)
            (self.folder / SCORE).unlink(missing_ok=True)
        if not self.finished:
            (self.folder / FAILED).unlink(missing_ok=True)


def differing(path: Path, text: str) -> list[str]:
    """The flags in which a file of flags and a text differ, but for the log that a finished run is compared with."""
    one, other = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text)
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name != COMPARED and one.get(name) != other.get(name)]


def grid(
    methods: Sequence[str], splits: Sequence[str], seeds: Iterable[int], folder: Path, benchmark: Benchmark
) -> list[Cell]:
    """Every combination; seeds vary last, so that each row's first result comes early.

    Args:
        methods: initialiser and loss of each.
        splits: of the benchmark; the ones that they go on from are added.
        seeds: of everything.
        folder: of the bench.
        benchmark: whose splits they are.

    Raises:
        InputError: a method that is no initialiser+loss.
    """
    raise_if(problem for method in methods for problem in _method_problems(method))
    evaluated_on = None if benchmark.evaluated_by_unlearn else benchmark.name
    cells: dict[tuple[str, str, int], Cell] = {}
    for seed, split, method in itertools.product(seeds, _with_earlier(splits, benchmark.after), methods):
        on = cells[method, benchmark.after[split], seed] if split in benchmark.after else None
        place = folder / "cells" / split / method / f"seed-{seed}"
        cells[method, split, seed] = Cell(method, split, seed, place, evaluated_on, on)
    return list(cells.values())


def _with_earlier(splits: Sequence[str], after: Mapping[str, str]) -> list[str]:
    """The splits, each after the ones that it goes on from."""
    found: dict[str, None] = {}
    for split in splits:
        chain = [split]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
        found |= dict.fromkeys(reversed(chain))
    return list(found)


def _method_problems(method: str) -> list[Problem]:
    init, plus, loss = method.partition("+")
    if not plus:
        return [Problem("methods", method, "a method is an initialiser and a loss", "write it as vila+ihl")]
    parts = ((init, INITIALISERS), (loss, LOSSES))
    return [unknown_name("methods", name, known) for name, known in parts if name not in known]
