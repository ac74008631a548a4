"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.benchmarks.builtin.muse_mini import MuseMini
from unlora.benchmarks.builtin.persona import Persona
from unlora.benchmarks.builtin.wmdp_mini import WmdpMini
from unlora.benchmarks.interface import Benchmark
from unlora.benchmarks.muse import Muse
from unlora.benchmarks.tofu import OwnSets, Tofu
from unlora.benchmarks.wmdp import Wmdp
from unlora.common.errors import InputError
from unlora.common.plugins import register, unknown_choice

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (Persona(), Tofu(), Muse(), MuseMini(), Wmdp(), WmdpMini())
}
# What `unlora evaluate` measures if no benchmark is named.
OWN_SETS = OwnSets()


def register_benchmark(benchmark: Benchmark) -> None:
    """Add a benchmark under its name, in this process.

    Raises:
        InputError: the name is taken.
    """
    register("benchmark", BENCHMARKS, benchmark.name, benchmark)


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of this name.

    Raises:
        InputError: there is none.
    """
    if name not in BENCHMARKS:
        raise InputError(unknown_choice("benchmark", name, BENCHMARKS))
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
