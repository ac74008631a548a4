"""The benchmarks by name."""

from __future__ import annotations

from unlora.bench.interface import Benchmark
from unlora.bench.muse import MUSE, MUSE_MINI
from unlora.bench.tofu import PERSONA, TOFU
from unlora.bench.wmdp import WMDP, WMDP_MINI

BENCHMARKS: dict[str, Benchmark] = {
    "persona": PERSONA,
    "tofu": TOFU,
    "muse": MUSE,
    "muse-mini": MUSE_MINI,
    "wmdp": WMDP,
    "wmdp-mini": WMDP_MINI,
}
