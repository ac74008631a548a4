"""The command line. Each command is one module, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

COMMANDS = {
    "quickstart": "the whole job on the built-in benchmark, from nothing, on a laptop CPU",
    "unlearn": "one request: importance, training, export, evaluation",
    "importance": "estimate and save the importance only",
    "finetune": "fine-tune a model, all weights or LoRA: the one that will forget, or the retrained one",
    "evaluate": "the numbers of a benchmark (TOFU, MUSE, WMDP, ...) for a model, an adapter, a run or an existing log",
    "bench": "a grid of methods, splits and seeds on a benchmark, resumable, one table",
    "attack": "does it stay forgotten: attacks on the model of a run",
    "export": "a run's adapter or the merged model with a model card, in a folder and on the hub",
    "verify": "whether data, base, adapter and logs are still those of a run",
    "chat": "a local page: ask the original and the unlearned model of a run side by side",
    "report": "the page of a run: verdict, plots, answers before and after, settings",
    "compare": "several runs side by side: table, Pareto front, overlays",
    "membership": "memorisation, and how well the forget set can be told from unseen data",
    "validate": "every problem of a configuration at once, before anything is loaded",
    "ls": "the losses and initialisers, their settings and papers",
}
# Former names of commands, and what replaces them.
ALIASES = {
    "evaluate-muse": ["evaluate", "--benchmark", "muse"],
    "evaluate-tasks": ["evaluate", "--benchmark", "wmdp"],
    "evaluate-log": ["evaluate"],
}
EXIT_OK, EXIT_STOPPED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
# What the commands that go on where they were interrupted must be told, beside what they were told before.
FROM_CHECKPOINT = ["--resume_from_checkpoint", "true"]
RESUME = {"unlearn": FROM_CHECKPOINT, "finetune": FROM_CHECKPOINT, "bench": []}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Of several processes on one job (`accelerate launch`), only the main one prints.

    Returns:
        0 for success, 1 for training that was stopped or a check that failed, 2 for wrong input, 130 for an interrupt.
    """
    from unlora.common.distributed import is_main

    if is_main():
        try:
            code = execute(argv)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # as in `unlora ls | head`: what is left is said to nobody, at the end too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_STOPPED
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return execute(argv)


def execute(argv: Sequence[str] | None) -> int:
    """Runs one command and says how it ended, as `main`."""
    from unlora.common.errors import DivergenceError, InputError

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return EXIT_OK
    if arguments[0] == "--version":
        from unlora.common.version import __version__

        print(__version__)
        return EXIT_OK
    try:
        return run(arguments[0], arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT
    except DivergenceError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print(interrupted(arguments[0], arguments[1:]), file=sys.stderr)
        return EXIT_INTERRUPTED


def run(command: str, argv: list[str]) -> int:
    """Imports the command's module, runs it and tells its result."""
    from unlora.cli.arguments import HELP, HELP_ALL, fill, help_text, read
    from unlora.cli.output import Answer, output_mode
    from unlora.common.errors import InputError, unknown_name

    if command in ALIASES:
        print(f"`unlora {command}` is now `unlora {shlex.join(ALIASES[command])}`", file=sys.stderr)
        command, *chosen = ALIASES[command]
        argv = [*chosen, *("--retrained" if part == "--retain-log" else part for part in argv)]
    if command not in COMMANDS:
        raise InputError(unknown_name("command", command, COMMANDS))
    module = importlib.import_module(f"unlora.cli.{command.replace('-', '_')}")
    mode, rest = output_mode(argv)
    if {*HELP, HELP_ALL} & set(rest):
        print(help_text(command, module.SETTINGS, COMMANDS[command], module.EXAMPLE, HELP_ALL in rest))
        return EXIT_OK
    settings = module.settings_for(rest) if hasattr(module, "settings_for") else module.SETTINGS
    line = read(settings, rest, command, getattr(module, "HANDS_ON", False))  # before torch is loaded
    with mode.running():
        answer: Answer | int = module.run(*fill(line))
    if isinstance(answer, int):  # a command that serves until it is ended has no result
        return answer
    mode.tell(answer)
    return answer.code


def interrupted(command: str, argv: list[str]) -> str:
    """What to do after an interrupt."""
    again = ["unlora", command, *argv]
    if command not in RESUME:
        return f"interrupted; start again with: {shlex.join(again)}"
    new = [] if "--resume_from_checkpoint" in argv else RESUME[command]
    return f"interrupted; what is done is kept, go on with: {shlex.join([*again, *new])}"


def usage() -> str:
    """The text of `unlora --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: unlora COMMAND [--flags]\n\n"
        "Make a causal language model forget chosen data through a LoRA adapter, and measure how well it forgot.\n\n"
        f"commands:\n{rows}\n\n"
        "unlora COMMAND --help lists a command's flags. Every command takes --quiet and --json.\n"
        "exit codes: 0 done, 1 training stopped or a check failed, 2 wrong input, 130 interrupted\n"
        "example: unlora unlearn --config request.yaml --learning_rate 1e-4"
    )
