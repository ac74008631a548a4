"""`unlora evaluate`: evaluate a model, with or without an adapter, or an existing log on a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlora.cli.arguments import check_some
from unlora.cli.bench import flags
from unlora.cli.output import Answer
from unlora.common.errors import from_elsewhere, raise_if
from unlora.settings import (
    BenchmarkSettings,
    EvaluateConfig,
    LogConfig,
    ModelConfig,
    OwnSetsSettings,
    TaskSettings,
    TextConfig,
)
from unlora.settings.evaluation import file_problems

if TYPE_CHECKING:
    from unlora.benchmarks import Benchmark, Reading

EXAMPLE = "unlora evaluate --benchmark muse --on run --data muse-bench/MUSE-News --retrained retrained.json"
FIRST = {
    "the model": ("model_name_or_path", "adapter", "on"),
    "the benchmark": ("benchmark", "forget_data", "retain_data", "data", "ds_size"),
    "the result": ("log", "retrained"),
}
# The help shows the settings of all built-in benchmarks. Only those of the chosen benchmark are accepted as flags.
SETTINGS = (ModelConfig, EvaluateConfig, TextConfig, OwnSetsSettings, BenchmarkSettings, TaskSettings)


def settings_for(argv: Sequence[str]) -> tuple[Any, ...]:
    """Return the settings of the chosen benchmark or, if no model is named, those for reading an existing log."""
    if not {"--model_name_or_path", "--on", "--config"} & {part.partition("=")[0] for part in argv}:
        return (LogConfig,)
    check_some(SETTINGS, flags(list(argv)))  # before the benchmarks load torch
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--benchmark")
    benchmark = _benchmark(finder.parse_known_args(argv)[0].benchmark)
    text_settings = [TextConfig] if benchmark.takes_text_settings else []
    return (ModelConfig, EvaluateConfig, benchmark.settings, *text_settings)


def run(*settings: Any) -> Answer:
    """Evaluate a model and write its log or, if no model is named, read an existing log. Show the numbers."""
    if len(settings) == 1:
        return _summarise_log(*settings)
    from unlora.pipeline.benchmark import measure

    model, target, benchmark_settings, *text = settings
    benchmark = _benchmark(target.benchmark)
    reading, summary = measure(benchmark, model, target, benchmark_settings, *text)
    return Answer(summary, lambda: _show(benchmark, reading, summary), target.log)


def _summarise_log(config: LogConfig) -> Answer:
    """Show the numbers of an existing log, and convert it if `config.convert` is set.

    Raises:
        InputError: the log cannot be read, or cannot be compared with that of the retrained model.
    """
    from unlora.cli.tables import print_numbers
    from unlora.evals.log_format import KEPT

    benchmark = _benchmark(config.benchmark)
    log = benchmark.read_log(config.log)
    retrained = None if config.retrained is None else benchmark.read_log(config.retrained, "retrained")
    with from_elsewhere("log", config.log, "it is not a log of this benchmark", "name another log, or --benchmark"):
        summary, reading = benchmark.summary(log, retrained), benchmark.read(log, retrained)
    if config.convert is not None:
        raise_if(file_problems("convert", config.convert))
        benchmark.write_log(config.convert, log, summary)

    def show() -> None:
        if reading.examples or KEPT not in log:  # a file that only has aggregated values has no examples
            _show(benchmark, reading, summary)
        if KEPT in log:
            print_numbers("number in the file, by open-unlearning's name", summary["open_unlearning"])

    return Answer(summary, show, config.convert)


def _benchmark(name: str | None) -> Benchmark:
    from unlora.benchmarks import OWN_SETS, find_benchmark

    return find_benchmark(name) if name else OWN_SETS


def _show(benchmark: Benchmark, reading: Reading, summary: Mapping[str, Any]) -> None:
    """Print the numbers as a table."""
    from unlora.benchmarks.tofu import TofuSchema
    from unlora.cli.tables import print_reading, print_sets

    if isinstance(benchmark, TofuSchema):
        print_sets(summary, benchmark.sets)
    else:
        print_reading(reading, benchmark)
