"""The benchmarks: what is forgotten, how a model is evaluated, and what the numbers mean. See `interface.py`."""

from unlora.benchmarks.interface import Benchmark, Measured, Metric, Options, Reading
from unlora.benchmarks.table import BENCHMARKS, benchmark_of, find_benchmark, register_benchmark
from unlora.benchmarks.tofu import OWN_SETS

__all__ = [
    "BENCHMARKS",
    "OWN_SETS",
    "Benchmark",
    "Measured",
    "Metric",
    "Options",
    "Reading",
    "benchmark_of",
    "find_benchmark",
    "register_benchmark",
]
