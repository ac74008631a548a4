"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.benchmarks.interface import Benchmark
from unlora.common.errors import raise_if
from unlora.common.plugins import register
from unlora.settings import names
from unlora.settings.names import Table, name_problems

BENCHMARKS: Table[Benchmark] = names.BENCHMARKS


def register_benchmark(benchmark: Benchmark) -> None:
    """Add a benchmark under its name, in this process.

    Raises:
        InputError: the name is taken.
    """
    register("benchmark", BENCHMARKS, benchmark.name, benchmark)


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of this name.

    Raises:
        InputError: there is no such benchmark.
    """
    raise_if(name_problems("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]


def benchmark_of(log: Mapping[str, Any]) -> Benchmark:
    """Return the benchmark that the log names or, for a log that names none, the first that recognises it.

    Raises:
        ValueError: no benchmark recognises the log.
    """
    named = BENCHMARKS.get(str(log.get("benchmark")))
    found = named or next((benchmark for benchmark in BENCHMARKS.values() if benchmark.owns(log)), None)
    if found is None:
        raise ValueError("it is not a log of any registered benchmark")
    return found
