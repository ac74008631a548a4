"""Run cells, several at a time. Each cell runs in its own processes, so that a crash does not affect the others."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from unlora.bench.cells import FAILED, LOG, Cell
from unlora.bench.executors import Execute, execute_here
from unlora.bench.sharing import shared_importance
from unlora.common import plugins
from unlora.common.files import write_text

# All options are set, because accelerate would otherwise prompt for them, or start one process if there is no GPU.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--main_process_port", "0"]


def say(line: str) -> None:
    """Print a line immediately, even if stdout is a file."""
    print(line, flush=True)


class Progress:
    """Report the start and the end of each cell, the cells that run, and the time left once the first one is done.

    Args:
        total: number of cells.
        say: called with each line of text.
    """

    def __init__(self, total: int, say: Callable[[str], None] = say) -> None:
        self.total, self.say, self.begun, self.done, self.since = total, say, 0, 0, time.monotonic()
        self._running: list[Cell] = []
        self._lock = threading.Lock()  # cells start in different threads

    def start(self, cell: Cell) -> None:
        """Report that a cell starts."""
        with self._lock:
            self.begun += 1
            self._running.append(cell)
            self.say(f"cell {self.begun} of {self.total} starts: {cell}{self._left()}")

    def end(self, cell: Cell, state: str) -> None:
        """Report how a cell ended."""
        with self._lock:
            self.done += 1
            if cell in self._running:  # a cell that continues from a failed one never started
                self._running.remove(cell)
            others = "; running: " + ", ".join(map(str, self._running)) if self._running else ""
            self.say(f"{self.done}/{self.total} {cell}: {state}{self._left()}{others}")

    def _left(self) -> str:
        if not self.done:
            return ""
        return f"; {(time.monotonic() - self.since) / self.done * (self.total - self.done) / 60:.0f} min left"


def waves(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells in groups such that each cell only continues from cells of earlier groups."""
    parts: defaultdict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        depth, earlier = 0, cell.on
        while earlier is not None:
            depth, earlier = depth + 1, earlier.on
        parts[depth].append(cell)
    return [parts[depth] for depth in sorted(parts)]


def run_cells(
    cells: Sequence[Cell],
    processes: int,
    progress: Progress,
    num_processes: int = 1,
    execute: Execute = execute_here,
) -> None:
    """Run all cells. Those that fail are marked, and do not stop the others.

    Args:
        cells: prepared cells. The cells that they continue from have been run.
        processes: number of cells that run at a time. Each gets its own GPUs if there are enough of them, and its
            share of the CPU's cores.
        progress: reports the start and the end of each cell.
        num_processes: number of processes, each with one GPU, that accelerate starts for the unlearning of one cell.
        execute: runs one command of a cell, on this machine or on a cluster.
    """
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for number in range(processes):
        free.put(_environment(number, processes, num_processes))
    with ThreadPoolExecutor(processes) as pool:
        try:
            futures = {pool.submit(_run_cell, cell, free, progress, num_processes, execute): cell for cell in cells}
            for future in as_completed(futures):
                progress.end(futures[future], future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _environment(number: int, processes: int, num_processes: int) -> dict[str, str]:
    """Return the environment variables of worker `number`, with its share of the cores and GPUs."""
    import torch

    threads = max(1, (os.cpu_count() or 1) // (processes * num_processes))
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    count = torch.cuda.device_count()
    if count > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        own = (visible[(number * num_processes + rank) % count] for rank in range(num_processes))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return environment


def _run_cell(
    cell: Cell, free: queue.Queue[dict[str, str]], progress: Progress, num_processes: int, execute: Execute
) -> str:
    """Run the commands of a cell in the environment of a free worker, and return how it ended."""
    if cell.on is not None and not cell.on.finished:
        return _failed(cell, f"the request that it continues from failed: {cell.on}")
    environment = free.get()
    progress.start(cell)
    try:
        write_text(cell.folder / LOG, "")
        for command in cell.commands:
            known = shared_importance(cell) if command[0] == "unlearn" else None
            importance = [] if known is None else ["--importance_file", str(known)]
            argv = [*launcher(command[0], num_processes), *command, *importance, *plugins.flags()]
            code = execute(argv, cell.folder / LOG, environment)
            if code:
                break
    finally:
        free.put(environment)
    if cell.finished:
        return "done"
    lines = (cell.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return _failed(cell, f"exit code {code}, see {cell.folder / LOG}: {lines[-1] if lines else 'no output'}")


def _failed(cell: Cell, reason: str) -> str:
    write_text(cell.folder / FAILED, reason)
    return f"FAILED ({reason})"


def launcher(command: str, num_processes: int) -> list[str]:
    """Return the command that starts `unlora`: accelerate's launcher if several processes share an unlearning."""
    if num_processes == 1 or command != "unlearn":
        return [sys.executable, "-m", "unlora"]
    return [sys.executable, "-m", *ACCELERATE, "--num_processes", str(num_processes), "--module", "unlora"]
