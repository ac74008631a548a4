"""Settings that belong to a single command. A field marked as positional is given without a flag."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass
from importlib.util import find_spec
from pathlib import Path

from unlora.common.errors import Problem, unknown_name
from unlora.settings.checks import SEED, at_least, value_problems
from unlora.settings.names import BENCHMARKS, EXECUTORS, KINDS, method_problems, name_problems
from unlora.settings.setting import setting

_SOME = at_least(1, "nothing would run")


@dataclass
class RunConfig:
    """The run."""

    run: str = setting(MISSING, "The folder of a finished `unlora unlearn`.", positional=True, metavar="RUN")

    def problems(self) -> list[Problem]:
        """Check that the folder exists, before anything is loaded."""
        if os.path.isdir(self.run):
            return value_problems(self)
        return [Problem("RUN", self.run, "there is no such folder", "name the folder of a finished `unlora unlearn`")]


@dataclass
class LoadedRunConfig(RunConfig):
    """The run, and whether its model may run its own code."""

    trust_remote_code: bool = setting(
        False, "Run code that comes with the run's model. The run's own configuration cannot allow it."
    )


@dataclass
class VerifyConfig(RunConfig):
    """The run to verify, and where its inputs are now (by default where the run's configuration says)."""

    base: str | None = setting(None, "Current location of the base model.")
    forget_data: str | None = setting(None, "Current location of the forget set.")
    retain_data: str | None = setting(None, "Current location of the retain set.")
    holdout_data: str | None = setting(None, "Current location of the stopping test's holdout set.")
    eval_data: str | None = setting(None, "Current location of the evaluated sets.")


@dataclass
class ValidateConfig:
    """The configuration to check."""

    file: str | None = setting(
        None,
        "The same as --config: a YAML file of flags, or the name of a published configuration.",
        positional=True,
        metavar="RUN.yaml",
    )


@dataclass
class CompareConfig:
    """The runs to compare, and how the comparison is shown."""

    runs: list[str] = setting(
        MISSING,
        "The folders of finished `unlora unlearn` runs, or evaluation logs: ours, TOFU's or open-unlearning's.",
        positional=True,
        metavar="RUN",
    )
    original_log: str | None = setting(None, "Log of the original model, to compare the logs among the runs with.")
    retrained: str | None = setting(None, "Log of the retrained model, to compare the logs among the runs with.")
    output: Path = setting(Path("compare.html"), "Where the page is written.")
    markdown: bool = setting(False, "Print Markdown instead of a table.", switch=True)

    def problems(self) -> list[Problem]:
        """Check that all runs exist."""
        fix = "name the folder of a finished `unlora unlearn`, or a log"
        absent = [run for run in self.runs if not os.path.exists(run)]
        return [Problem("RUN", run, "there is no such file or folder", fix) for run in absent]


@dataclass
class LsConfig:
    """What to list."""

    kinds: list[str] = setting(
        [],
        "Any of initialisers, losses, teachers, retain_losses, benchmarks and configurations. Defaults to all of them.",
        positional=True,
        metavar="KIND",
    )
    markdown: bool = setting(False, "Print Markdown tables, as in docs/methods.md.", switch=True)

    def problems(self) -> list[Problem]:
        """Check that the kinds exist."""
        return [unknown_name("KIND", kind, KINDS) for kind in self.kinds if kind not in KINDS]


@dataclass
class QuickstartConfig:
    """The seed, and where the result goes."""

    seed: int = setting(0, "Seed of the generated people, the models and the training.")
    output_dir: Path | None = setting(None, "New folder for the result. Defaults to runs/quickstart-<time>.")

    def problems(self) -> list[Problem]:
        """Check the seed."""
        return value_problems(self, {"seed": SEED})


@dataclass(kw_only=True)
class DryRunConfig:
    """Whether to check the request without carrying it out."""

    dry_run: bool = setting(
        False,
        "Read and check data and model, print what would be done and how long it would take, and write nothing.",
        switch=True,
    )


@dataclass
class BenchConfig(DryRunConfig):
    """Which cells to run, and where."""

    benchmark: str = setting(
        MISSING,
        "Name of the benchmark: see `unlora ls benchmarks`. persona, muse-mini and wmdp-mini create their own "
        "models and data.",
        positional=True,
        metavar="BENCHMARK",
    )
    output_dir: Path = setting(MISSING, "Folder of the bench. Finished cells in it are kept. Required.")
    methods: list[str] = setting(
        ["vila+ihl"],
        "Methods to compare, each written as initialiser+loss: see `unlora ls`. A label tells several settings of one "
        "method apart, such as vila+ihl@rank4.",
    )
    splits: list[str] | None = setting(None, "Splits of the benchmark. Defaults to all of them.")
    seeds: int = setting(3, "Number of seeds for each method.")
    first_seed: int = setting(0, "The first of these seeds. Do not reuse seeds that settings were tuned on.")
    processes: int = setting(1, "Number of cells that run at the same time, each on its own GPU.")
    num_processes: int = setting(1, "Number of GPUs that share one cell, through accelerate.")
    executor: str = setting("local", "Where the cells run: local or ray.")
    settings: Path | None = setting(None, "YAML file of flags for individual methods: {vila+ihl@rank4: {r: 4}}.")
    model_name_or_path: str | None = setting(None, "The original model, which is to be unlearned.")
    data: str | None = setting(None, "The benchmark's data: a folder or a dataset on the Hugging Face Hub.")
    retrained: list[str] = setting(
        [],
        "SPLIT=LOG.json or SPLIT=MODEL of a model trained without the forget set, for forget quality. Without SPLIT= "
        "it is used for all splits (muse).",
    )

    rows: list[str] = setting(
        [],
        "NAME=LOG.json of a model that was unlearned elsewhere, to add as a row: ours, TOFU's or open-unlearning's. "
        "With several splits, SPLIT:NAME=LOG.json.",
    )

    def problems(self) -> list[Problem]:
        """Check the numbers, and that benchmark and methods exist."""
        some = dict.fromkeys(("seeds", "processes", "num_processes"), _SOME)
        methods = [problem for method in self.methods for problem in method_problems(method)]
        return [
            *name_problems("benchmark", self.benchmark, BENCHMARKS),
            *methods,
            *self._executor_problems(),
            *value_problems(self, {**some, "first_seed": SEED}),
        ]

    def _executor_problems(self) -> list[Problem]:
        if self.executor not in EXECUTORS:
            return [unknown_name("executor", self.executor, EXECUTORS)]
        if self.executor == "ray" and find_spec("ray") is None:
            return [Problem("executor", "ray", "ray is not installed", "pip install 'unlora[ray]'")]
        return []
