"""A grid of methods, splits and seeds on one benchmark: every cell is one run of `unlora unlearn`, measured."""

from unlora.bench.cells import Cell, grid
from unlora.bench.runner import Progress, run_cells, waves
from unlora.bench.table import Results, rows_of
from unlora.benchmarks.interface import Benchmark, Options
from unlora.benchmarks.table import BENCHMARKS

__all__ = ["BENCHMARKS", "Benchmark", "Cell", "Options", "Progress", "Results", "grid", "rows_of", "run_cells", "waves"]
