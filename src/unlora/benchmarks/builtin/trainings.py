"""Train the models of the built-in benchmarks in parallel processes, and cache them.

Several programs can share the cache: one of them trains a model, and the others wait for it. The next training deletes
the files that a killed one left behind. Importing this does not import torch, so that a program can call `preload`
first and load its own libraries meanwhile.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from unlora.benchmarks.builtin.recipe import Recipe
from unlora.common.locks import only_one
from unlora.common.progress import is_quiet, terminal

logger = logging.getLogger(__name__)
# The start method of processes. A plain fork would copy a program that already runs threads.
_CONTEXT = get_context("forkserver") if "forkserver" in get_all_start_methods() else get_context("spawn")


def preload(module: str, folders: Mapping[str, Path]) -> None:
    """Start a process that imports a module in the background, unless all models exist.

    The trainings are forked from this process, so that the libraries are loaded only once. On Windows, which cannot
    fork, each training loads them.
    """
    if _CONTEXT.get_start_method() == "forkserver" and not all(folder.exists() for folder in folders.values()):
        from multiprocessing.forkserver import ensure_running

        _CONTEXT.set_forkserver_preload([module])
        ensure_running()


class Trainings:
    """Start the training of each missing model. `wait` returns the models.

    Args:
        train: the training function as `module:name`, which is called with kind, recipe and folder.
        recipe: recipe of the models.
        folders: {kind of model: its folder}.
    """

    def __init__(self, train: str, recipe: Recipe, folders: Mapping[str, Path]) -> None:
        preload(train.partition(":")[0], folders)
        self.folders = folders
        self._processes: dict[str, BaseProcess] = {}
        for kind, folder in folders.items():
            if not folder.exists():
                # Each process uses one core, because such a small model gains little from a second one.
                arguments = (is_quiet(), train, kind, recipe, folder)
                self._processes[kind] = _CONTEXT.Process(target=_train_apart, args=arguments)
                self._processes[kind].start()

    def wait(self, *kinds: str) -> dict[str, Path]:
        """Wait for these kinds of models, or for all, and return {kind: folder}.

        Raises:
            RuntimeError: one of the trainings failed. Its output is on the terminal.
        """
        wanted = kinds or tuple(self.folders)
        failed = []
        for kind in wanted:
            if process := self._processes.get(kind):
                process.join()
                failed += [kind] if process.exitcode else []
        if failed:
            raise RuntimeError(f"training of the {' and the '.join(failed)} model failed")
        return {kind: self.folders[kind] for kind in wanted}


def _train_apart(quiet: bool, train: str, kind: str, recipe: Recipe, folder: Path) -> None:
    """Train a model in this separate process, to which the setting `quiet` must be passed.

    This process holds the lock instead of the one that started it. If only the latter is killed, training goes on, and
    the next program waits for its result.
    """

    def waiting() -> None:
        logger.warning("waiting for another process that is making %s", folder)

    with terminal(quiet), only_one(folder, waiting):
        if not folder.exists():
            module, name = train.split(":")
            getattr(importlib.import_module(module), name)(kind, recipe, folder)


def cache_folder() -> Path:
    """Return $UNLORA_CACHE, or `unlora` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("UNLORA_CACHE") or Path(home) / "unlora")
