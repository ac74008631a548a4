"""The command line. Each command is one module, which is only imported when the command is called.

A module defines
- `SETTINGS`, the dataclasses whose fields are its flags;
- `EXAMPLE`, a command line for its help;
- `FIRST`, if it has many flags: {group: flags that `--help` shows};
- `FORWARDS`, if it passes unknown flags on to another command, with `check` to check them before torch is loaded;
- `settings_for`, if the dataclasses depend on the arguments;
- `run`, which takes one instance of each dataclass and returns an `Answer`.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlora.common.errors import Problem

COMMANDS = {
    "quickstart": "do the whole job on a generated benchmark, from scratch, on a laptop CPU",
    "unlearn": "run one request: importance, training, export, evaluation",
    "importance": "estimate the importance and save it, without training",
    "finetune": "fine-tune a model, all weights or LoRA: the one that will forget, or the retrained one",
    "evaluate": "evaluate a model, an adapter, a run or an existing log on a benchmark (TOFU, MUSE, WMDP, ...)",
    "bench": "run a grid of methods, splits and seeds on a benchmark, resumable, with one table as the result",
    "attack": "test whether the model of a run really forgot, by attacking it",
    "export": "export a run's adapter or the merged model with a model card, to a folder and to the Hub",
    "verify": "check whether the data, the base, the adapter and the logs of a run are unchanged",
    "chat": "ask the original and the unlearned model of a run side by side, on a local page",
    "report": "write the page of a run: verdict, plots, answers of both models, settings",
    "compare": "compare several runs: table, Pareto front, overlaid plots",
    "membership": "measure memorisation, and how well the forget set can be told from unseen data",
    "validate": "list every problem of a configuration at once, before anything is loaded",
    "ls": "list losses, initialisers, benchmarks and published configurations",
}
# At exit, Python runs several garbage collections over all objects, which takes more than a second once torch and
# transformers are loaded. The system frees the memory anyway.
atexit.register(gc.freeze)
# Former names of commands -> the commands that replace them.
_ALIASES = {
    "evaluate-muse": ["evaluate", "--benchmark", "muse"],
    "evaluate-tasks": ["evaluate", "--benchmark", "wmdp"],
    "evaluate-log": ["evaluate"],
}
_EXIT_OK, _EXIT_STOPPED, _EXIT_INPUT, _EXIT_INTERRUPTED = 0, 1, 2, 130
# Commands that can continue after an interrupt -> the flags for it.
_FROM_CHECKPOINT = ["--resume_from_checkpoint", "true"]
_RESUME = {"unlearn": _FROM_CHECKPOINT, "finetune": _FROM_CHECKPOINT, "bench": []}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. If several processes run it (`accelerate launch`), only the main one prints.

    Returns:
        The exit code: 0 for success, 1 if training was stopped, a check failed or there was an unexpected error, 2 for
        invalid input, 130 for an interrupt.
    """
    from unlora.common.distributed import is_main

    if is_main():
        try:
            with _plain_output():
                code = _execute(argv)
                sys.stdout.flush()
            return code
        except BrokenPipeError:  # as in `unlora ls | head`; stdout is flushed again at exit, so redirect it to nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _EXIT_STOPPED
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return _execute(argv)


@contextmanager
def _plain_output() -> Iterator[None]:
    """Escape control characters in the output, so that text from models and files cannot act on the terminal."""
    from unlora.common.plain import PlainStream

    output, errors = PlainStream(sys.stdout), PlainStream(sys.stderr, bars=sys.stderr.isatty())
    with redirect_stdout(output), redirect_stderr(errors):
        yield


def _execute(argv: Sequence[str] | None) -> int:
    """Run one command, print its errors, and return the exit code."""
    from unlora.common.errors import DivergenceError, InputError
    from unlora.common.files import why_unwritable
    from unlora.common.plugins import problem_in

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return _EXIT_OK
    if arguments[0] == "--version":
        from unlora.common.version import __version__

        print(__version__)
        return _EXIT_OK
    try:
        return _run(arguments[0], arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_INPUT
    except DivergenceError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return _EXIT_STOPPED
    except KeyboardInterrupt:
        print(interrupted(arguments[0], arguments[1:]), file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        problem, unwritable = problem_in(error) or _too_long(error, arguments), why_unwritable(error)
        if unwritable and not problem:
            print(
                f"stopped: a file could not be written or read ({unwritable}). Make room or give access, then:\n"
                f"{_continuation(arguments[0], arguments[1:])}",
                file=sys.stderr,
            )
            return _EXIT_STOPPED
        print(f"error: {problem}" if problem else _unexpected(error), file=sys.stderr)
        return _EXIT_INPUT if problem else _EXIT_STOPPED


def _too_long(error: Exception, arguments: Sequence[str]) -> Problem | None:
    """Return the problem of a path that is too long for the system, or None for other errors.

    Its argument is the flag whose value is part of the path, if there is one.
    """
    from unlora.common.errors import Problem

    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    name = str(error.filename)
    flags = [(len(value), flag) for flag, value in pairwise(arguments) if flag.startswith("--") and value in name]
    argument = max(flags)[1].lstrip("-") if flags else "path"
    return Problem(argument, name, "it is too long for a path", "use a shorter one")


def _unexpected(error: Exception) -> str:
    """Save the traceback of an unexpected error, and return one line about it."""
    from unlora.common.errors import shortened

    text = shortened(f"{type(error).__name__}: {error}", 400)
    try:
        descriptor, path = tempfile.mkstemp(".txt", "unlora-traceback-")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # the traceback cannot be saved
        return f"error: {text}"
    return f"error: {text}. The traceback is in {path}: report it if you cannot tell what is wrong"


def _run(command: str, argv: list[str]) -> int:
    """Parse the flags, run the command's module, and print the result."""
    from unlora.cli.arguments import fill, plugin_paths, read
    from unlora.cli.output import Answer, output_mode
    from unlora.cli.parser import HELP, HELP_ALL, help_text
    from unlora.common.errors import InputError, unknown_name
    from unlora.common.plugins import load_plugins

    if command in _ALIASES:
        print(f"`unlora {command}` is now `unlora {shlex.join(_ALIASES[command])}`", file=sys.stderr)
        command, *chosen = _ALIASES[command]
        argv = [*chosen, *("--retrained" if part == "--retain-log" else part for part in argv)]
    if command not in COMMANDS:
        raise InputError(unknown_name("command", command, COMMANDS))
    module = importlib.import_module(f"unlora.cli.{command.replace('-', '_')}")
    mode, rest = output_mode(argv)
    plugins, rest = plugin_paths(rest)
    if {*HELP, HELP_ALL} & set(rest):
        first = getattr(module, "FIRST", {})
        print(help_text(command, module.SETTINGS, COMMANDS[command], module.EXAMPLE, first, HELP_ALL in rest))
        return _EXIT_OK
    settings = module.SETTINGS
    forwards = getattr(module, "FORWARDS", False)
    with mode.running(loads=bool(plugins)):
        load_plugins(plugins)  # they may add methods and benchmarks, with flags of their own
    if hasattr(module, "settings_for"):
        settings = module.settings_for(rest)
    line = read(settings, rest, command, forwards)  # before torch is loaded
    if forwards:
        module.check(line)
    with mode.running():
        answer: Answer | int = module.run(*fill(line))
    if isinstance(answer, int):  # a command that serves a page has no result
        return answer
    mode.tell(answer)
    return answer.code


def interrupted(command: str, argv: list[str]) -> str:
    """Return the message after an interrupt."""
    return f"interrupted; {_continuation(command, argv)}"


def _continuation(command: str, argv: list[str]) -> str:
    """Return how to continue or repeat a command that was stopped."""
    same = ["unlora", command, *argv]
    if command not in _RESUME:
        return f"start again with: {shlex.join(same)}"
    new = [] if "--resume_from_checkpoint" in argv else _RESUME[command]
    return f"finished work is kept, continue with: {shlex.join([*same, *new])}"


def _usage() -> str:
    """Return the text of `unlora --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: unlora COMMAND [--flags]\n\n"
        "Make a causal language model forget chosen data through a LoRA adapter, and measure how well it forgot.\n\n"
        f"commands:\n{rows}\n\n"
        "unlora COMMAND --help lists a command's flags. Every command takes --quiet, --json and --plugin.\n"
        "exit codes: 0 done, 1 training stopped or a check failed, 2 wrong input, 130 interrupted\n"
        "example: unlora unlearn --config request.yaml --learning_rate 1e-4"
    )
