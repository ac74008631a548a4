"""Run unlora commands in forked processes, and inject a fault at a chosen file operation.

Forked processes need not import the libraries again. A Python audit hook counts the operations of a command that change
files in its output folder, and injects the fault when the count reaches the chosen number.
"""

from __future__ import annotations

import errno
import gc
import importlib
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from markupsafe import Markup

from unlora.report import plots

_IMPORTED = (
    *("datasets", "matplotlib.figure", "rouge_score.rouge_scorer", "transformers.hf_argparser", "peft.tuners.lora.bnb"),
    *("transformers.models.llama.modeling_llama", "unlora.cli.unlearn", "unlora.pipeline.unlearn"),
)
FAULTS = ("kill", "kill one", "full disk", "read-only")
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Args:
        code: exit code, or minus the number of the signal that ended it.
        text: stdout and stderr together.
        operations: number of operations on its output folder, including one at which it was stopped.
    """

    code: int
    text: str
    operations: int


@dataclass(frozen=True)
class Case:
    """A command to interrupt.

    Args:
        name: name of the case, shown in the results.
        argv: subcommand of unlora and its arguments.
        output: output folder.
        resume: further arguments that resume the command.
        processes: number of distributed processes, started as `accelerate launch` would.
    """

    name: str
    argv: Sequence[str]
    output: Path
    resume: Sequence[str] = ()
    processes: int = 1


def warm_up() -> None:
    """Import the libraries that forked processes need, and exclude them from garbage collection.

    Plots are replaced by empty ones: drawing them would take a third of the time and involves no file operation.
    """
    torch.set_num_threads(1)
    for module in _IMPORTED:
        importlib.import_module(module)
    plots._draw = lambda *args, **settings: Markup()
    gc.freeze()


def run(case: Case, resume: bool = False, fault: str | None = None, at: int = 0, copies: Path | None = None) -> Outcome:
    """Run a command in a forked process, and inject a fault at operation number `at` on its output folder.

    Args:
        case: the command.
        resume: whether to add the arguments that resume it.
        fault: "kill" kills all of its processes, "kill one" only the process that makes the operation. After
            "full disk" no file can grow; after "read-only" every operation fails.
        at: number of the operation, from 1.
        copies: folder in which the output folder is saved before each operation, in a subfolder named by its number.
    """
    argv = [*case.argv, *(case.resume if resume else ())]
    counter = mmap.mmap(-1, 8)  # memory shared with all child processes
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        os.close(reading)
        _watch(case.output, counter, fault, at, copies)
        if case.processes > 1:
            _launch(argv, writing, case.processes)
        become(argv, writing)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Outcome(code, text, struct.unpack("q", counter[:])[0])


def _launch(argv: Sequence[str], output: int, processes: int) -> None:
    """Start the distributed processes, and kill all of them as soon as one fails, as `accelerate launch` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for rank in range(processes):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            become(argv, output)
    for _ in range(processes):
        if os.waitstatus_to_exitcode(os.wait()[1]):
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


def become(argv: Sequence[str], output: int) -> None:
    """Run a command in this process, with stdout and stderr going to the descriptor `output`, and exit."""
    code = 1
    try:
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        subprocess.run = _forked  # type: ignore[assignment]
        from unlora.cli import main

        code = main(argv)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _forked(command: Sequence[str], stdout: Any = None, env: Any = None, **others: Any) -> SimpleNamespace:
    """Replace `subprocess.run`: run `python -m unlora ...` in a forked process."""
    assert list(command[1:3]) == ["-m", "unlora"], command
    process = os.fork()
    if process == 0:
        os.environ.update(env or {})
        target = os.open(os.devnull, os.O_WRONLY) if stdout == subprocess.DEVNULL else stdout.fileno()
        become(command[3:], target)  # the audit hook is inherited, so its operations are counted too
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _watch(output: Path, counter: mmap.mmap, fault: str | None, at: int, copies: Path | None) -> None:
    """Install an audit hook that counts the operations on the output folder, copies it, and injects the fault."""
    folder = os.path.abspath(output)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not _changes(event, args, folder):
            return
        number = struct.unpack("q", counter[:])[0] + 1
        counter[:] = struct.pack("q", number)
        if copies and output.exists():
            shutil.copytree(output, copies / str(number), symlinks=True)
        if fault == "kill" and number == at:
            os.killpg(0, signal.SIGKILL)
        if fault == "kill one" and number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full disk" and number == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        if fault == "read-only" and number >= at:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(args[0]))

    sys.addaudithook(hook)


def _changes(event: str, args: tuple[Any, ...], folder: str) -> bool:
    """Return whether an audit event announces a change to a file or folder in `folder`."""
    if event == "open":
        return isinstance(args[0], str) and bool(args[2] & _WRITING) and os.path.abspath(args[0]).startswith(folder)
    # `shutil.rmtree` passes file names relative to the folder that it deletes, so a relative path counts as inside.
    return event in _CHANGES and (not os.path.isabs(args[0]) or os.fspath(args[0]).startswith(folder))
