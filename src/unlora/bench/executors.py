"""Where the commands of a cell run: on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from unlora.settings import names
from unlora.settings.names import Table

# (command, file to which its output is appended, environment variables) -> exit code
Execute = Callable[[Sequence[str], Path, Mapping[str, str]], int]
EXECUTORS: Table[Callable[[], AbstractContextManager[Execute]]] = names.EXECUTORS


def execute_here(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run a command as a process of this machine."""
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, stderr=file, env={**os.environ, **environment}).returncode


@contextmanager
def local() -> Iterator[Execute]:
    """Yield a function that runs commands on this machine."""
    yield execute_here


@contextmanager
def ray_cluster() -> Iterator[Execute]:
    """Yield a function that runs commands as Ray tasks.

    The cluster is that of `RAY_ADDRESS` or of an earlier `ray.init`, or else a new one on this machine.

    A command takes one CPU and, if the cluster has GPUs, one GPU, which Ray chooses. All nodes need this Python
    environment, and access to the bench's folder under the same path.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False)
    # If the function were pickled by reference, each worker would import this package, and torch with it.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    gpus = min(1, ray.cluster_resources().get("GPU", 0))
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_execute_in)
    here = os.getcwd()

    def execute(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        own = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
        try:
            code: int = ray.get(task.remote(here, command, log, own))
        except ray.exceptions.RayError as error:  # the node or the worker died, and the command with it
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{type(error).__name__}: {error}\n")
            return 1
        return code

    try:
        yield execute
    finally:
        if ours:
            ray.shutdown()


def _execute_in(folder: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    os.chdir(folder)  # relative paths in the command refer to this folder
    return execute_here(command, log, environment)
