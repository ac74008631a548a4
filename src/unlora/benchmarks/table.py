"""The benchmarks by name."""

from __future__ import annotations

from unlora.benchmarks.interface import Benchmark
from unlora.benchmarks.muse import MUSE, MUSE_MINI
from unlora.benchmarks.tofu import PERSONA, TOFU
from unlora.benchmarks.wmdp import WMDP, WMDP_MINI

BENCHMARKS: dict[str, Benchmark] = {
    "persona": PERSONA,
    "tofu": TOFU,
    "muse": MUSE,
    "muse-mini": MUSE_MINI,
    "wmdp": WMDP,
    "wmdp-mini": WMDP_MINI,
}
