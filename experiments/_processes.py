"""Run commands of unlora in forked processes, which need not import the libraries, and stop them at a chosen moment.

An audit hook of Python counts what a command does to files in its output folder, and strikes at the chosen operation.
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
    """How a command ended.

    Args:
        code: its exit code, or minus the signal that ended it.
        text: what it printed.
        operations: how often it changed something in its output folder, or was about to.
    """

    code: int
    text: str
    operations: int


@dataclass(frozen=True)
class Case:
    """A command to stop.

    Args:
        name: of the command.
        argv: its arguments, with the command.
        output: its output folder.
        resume: the arguments that are added to resume it.
        processes: how many processes share the work, as `accelerate launch` would start them.
    """

    name: str
    argv: Sequence[str]
    output: Path
    resume: Sequence[str] = ()
    processes: int = 1


def warm_up() -> None:
    """Import what forked processes need, and keep them from looking at it for garbage.

    They draw no plots, which would take a third of their time and touch no file.
    """
    torch.set_num_threads(1)
    for module in _IMPORTED:
        importlib.import_module(module)
    plots._draw = lambda *args, **settings: Markup()
    gc.freeze()


def run(case: Case, resume: bool = False, fault: str | None = None, at: int = 0, copies: Path | None = None) -> Outcome:
    """Run a command in a forked process, to which a fault happens at its operation number `at` in its output folder.

    Args:
        case: the command.
        resume: whether to resume it.
        fault: "kill" ends all of its processes and "kill one" the one that is at work; on a "full disk" no file can
            grow from then on; "read-only" refuses every operation from then on.
        at: the number, from 1.
        copies: where the output folder is copied to before each operation, under its number.
    """
    argv = [*case.argv, *(case.resume if resume else ())]
    counter = mmap.mmap(-1, 8)  # shared with the processes that this one starts
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        os.close(reading)
        _watch(case.output, counter, fault, at, copies)
        if case.processes > 1:
            _lead(argv, writing, case.processes)
        become(argv, writing)
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Outcome(code, text, struct.unpack("q", counter[:])[0])


def _lead(argv: Sequence[str], output: int, processes: int) -> None:
    """Start the processes that share the work, and end them all as soon as one fails, as `accelerate launch` does."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
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
    """Be the command in this process, and end."""
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
    """Run `python -m unlora ...` in a forked process, in the place of `subprocess.run`."""
    assert list(command[1:3]) == ["-m", "unlora"], command
    process = os.fork()
    if process == 0:
        os.environ.update(env or {})
        target = os.open(os.devnull, os.O_WRONLY) if stdout == subprocess.DEVNULL else stdout.fileno()
        become(command[3:], target)  # it has its parent's audit hook
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _watch(output: Path, counter: mmap.mmap, fault: str | None, at: int, copies: Path | None) -> None:
    place = os.path.abspath(output)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not _changes(event, args, place):
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


def _changes(event: str, args: tuple[Any, ...], place: str) -> bool:
    """Return whether an event of Python's audit is about to change something in the folder."""
    if event == "open":
        return isinstance(args[0], str) and bool(args[2] & _WRITING) and os.path.abspath(args[0]).startswith(place)
    # `shutil.rmtree` names the files in a folder relative to it.
    return event in _CHANGES and (not os.path.isabs(args[0]) or os.fspath(args[0]).startswith(place))
