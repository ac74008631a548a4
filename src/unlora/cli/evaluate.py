"""`unlora evaluate`: the numbers of a benchmark for a model, with or without an adapter, or for an existing log."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.settings import BenchmarkSettings, EvaluateConfig, ModelConfig, TaskSettings, TextConfig, TofuSettings

if TYPE_CHECKING:
    from unlora.benchmarks import Benchmark, Reading

EXAMPLE = "unlora evaluate --benchmark muse --on run --data muse-bench/MUSE-News --retrained retrained.json"
# What the help shows: the settings of the built-in benchmarks. Only those of the chosen one are flags.
SETTINGS = (ModelConfig, EvaluateConfig, TextConfig, TofuSettings, BenchmarkSettings, TaskSettings)


def run(argv: list[str]) -> Answer:
    """Evaluate a model and write its log, or read an existing log if no model is named; show the numbers."""
    from unlora.benchmarks import OWN_SETS, find_benchmark

    argv = ["--retrain_log" if part == "--retrained" else part for part in argv]
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--benchmark")
    name = finder.parse_known_args(argv)[0].benchmark
    benchmark = find_benchmark(name) if name else OWN_SETS
    if not {"--model_name_or_path", "--on", "--config"} & {part.partition("=")[0] for part in argv}:
        return summarise_log(benchmark, argv)
    from unlora.pipeline.benchmark import measure

    text_settings = [TextConfig] if benchmark.takes_text_settings else []
    classes = (ModelConfig, EvaluateConfig, benchmark.settings, *text_settings)
    model, target, settings, *text = parse(classes, argv, "evaluate", EXAMPLE)
    reading, summary = measure(benchmark, model, target, settings, *text)
    return Answer(summary, lambda: show(benchmark, reading, summary), target.log)


def summarise_log(benchmark: Benchmark, argv: list[str]) -> Answer:
    """Show the numbers of an existing log, without a model.

    Raises:
        InputError: a log that cannot be read, or a retrained model's log that it cannot be compared with.
    """
    flags = argparse.ArgumentParser(prog="unlora evaluate", allow_abbrev=False)
    flags.add_argument("--benchmark")
    flags.add_argument("--log", required=True, help="an existing log, or with --model_name_or_path or --on a new file")
    flags.add_argument("--retrain_log")
    args = flags.parse_args(argv)
    log = benchmark.read_log(args.log)
    retrained = None if args.retrain_log is None else benchmark.read_log(args.retrain_log, "retrained")
    summary, reading = benchmark.summary(log, retrained), benchmark.read(log, retrained)
    return Answer(summary, lambda: show(benchmark, reading, summary))


def show(benchmark: Benchmark, reading: Reading, summary: Mapping[str, Any]) -> None:
    """Print the numbers as a table."""
    from unlora.benchmarks.tofu import TofuSchema
    from unlora.cli.tables import print_reading, print_sets

    if isinstance(benchmark, TofuSchema):
        print_sets(summary, benchmark.sets)
    else:
        print_reading(reading, benchmark)
