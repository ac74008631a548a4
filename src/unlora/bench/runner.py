"""Runs cells, several at a time, each in a process of its own: what one does to itself does not reach the others."""

from __future__ import annotations

import os
import queue
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from unlora.bench.cells import CONFIG, FAILED, LOG, RUN, Cell
from unlora.bench.executors import EXECUTORS, Execute
from unlora.files import write_text


def run_cells(
    cells: Sequence[Cell], processes: int, say: Callable[[str], None] = print, executor: str = "local"
) -> None:
    """Runs every prepared cell; the ones that fail are marked, and do not stop the others.

    Args:
        cells: what to run; each has been prepared.
        processes: how many run at a time. Each has a GPU of its own where there are several, and its share of the
            processor's cores.
        say: takes a line after each cell, with the time that is left.
        executor: "local" for processes of this machine, "ray" for tasks of a Ray cluster.
    """
    places: queue.Queue[dict[str, str]] = queue.Queue()
    for number in range(processes):
        places.put(_place(number, processes))
    started = time.monotonic()
    with EXECUTORS[executor]() as execute, ThreadPoolExecutor(processes) as pool:
        try:
            futures = {pool.submit(_run_cell, cell, places, execute): cell for cell in cells}
            for done, future in enumerate(as_completed(futures), 1):
                cell, state = futures[future], future.result()
                left = (time.monotonic() - started) / done * (len(cells) - done) / 60
                name = f"{cell.split} {cell.method} seed {cell.seed}"
                say(f"{done}/{len(cells)} {name}: {state}; {left:.0f} min left")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _place(number: int, processes: int) -> dict[str, str]:
    """The environment of worker `number`."""
    import torch

    threads = max(1, (os.cpu_count() or 1) // processes)
    place = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    count = torch.cuda.device_count()
    if count > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        place["CUDA_VISIBLE_DEVICES"] = visible[number % count]
    return place


def _run_cell(cell: Cell, places: queue.Queue[dict[str, str]], execute: Execute) -> str:
    """Runs `unlora unlearn` on the cell's configuration and says how it went."""
    place = places.get()
    try:
        write_text(cell.folder / LOG, "")
        command = [sys.executable, "-m", "unlora", "unlearn", "--config", str(cell.folder / CONFIG)]
        code = execute([*command, "--output_dir", str(cell.folder / RUN)], cell.folder / LOG, place)
    finally:
        places.put(place)
    if code == 0 and cell.metrics is not None:
        return "done"
    lines = (cell.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    write_text(cell.folder / FAILED, f"exit code {code}: {lines[-1] if lines else 'no output'}")
    return f"FAILED (exit code {code}, see {cell.folder / LOG})"
