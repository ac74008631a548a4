"""A grid of methods, splits and seeds on one benchmark. Each cell is one run of `unlora unlearn` and its evaluation."""

from unlora.bench.cells import Cell, grid
from unlora.bench.runner import Progress, run_cells, waves
from unlora.bench.table import Results, rows_of

__all__ = ["Cell", "Progress", "Results", "grid", "rows_of", "run_cells", "waves"]
