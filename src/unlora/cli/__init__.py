"""The command line. Each command is one module, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "quickstart": "the whole job on the built-in benchmark, from nothing, on a laptop CPU",
    "unlearn": "one request: importance, training, export, evaluation",
    "importance": "estimate and save the importance only",
    "finetune": "fine-tune a model, all weights or LoRA: the one that will forget, or the retrained one",
    "evaluate": "TOFU's metrics of a model, with or without an adapter",
    "evaluate-muse": "MUSE's metrics of a model: memorisation, privacy leakage, utility",
    "evaluate-tasks": "WMDP, MMLU and all other tasks of lm-evaluation-harness, with or without an adapter",
    "bench": "a grid of methods, splits and seeds on a benchmark, resumable, one table",
    "attack": "does it stay forgotten: attacks on the model of a run",
    "report": "the page of a run: verdict, plots, answers before and after, settings",
    "compare": "several runs side by side: table, Pareto front, overlays",
    "evaluate-log": "the metrics of an existing TOFU evaluation log",
    "membership": "memorisation, and how well the forget set can be told from unseen data",
    "validate": "every problem of a configuration at once, before anything is loaded",
    "ls": "the losses and initialisers, their settings and papers",
}
EXIT_OK, EXIT_STOPPED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 for success, 1 for training that was stopped, 2 for wrong input, 130 for an interrupt.
    """
    from unlora.errors import DivergenceError, InputError

    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return EXIT_OK
    if arguments[0] == "--version":
        from unlora import __version__

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
        print(
            "interrupted; training goes on from its last checkpoint with --resume_from_checkpoint true", file=sys.stderr
        )
        return EXIT_INTERRUPTED


def run(command: str, argv: list[str]) -> int:
    """Imports the command's module and runs it."""
    from unlora.errors import InputError, unknown_name

    if command not in COMMANDS:
        raise InputError(unknown_name("command", command, COMMANDS))
    module = importlib.import_module(f"unlora.cli.{command.replace('-', '_')}")
    code: int = module.run(argv)
    return code


def usage() -> str:
    """The text of `unlora --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: unlora COMMAND [--flags]\n\n"
        "Make a causal language model forget chosen data through a LoRA adapter, and measure how well it forgot.\n\n"
        f"commands:\n{rows}\n\n"
        "unlora COMMAND --help lists a command's flags.\n"
        "exit codes: 0 done, 1 training stopped, 2 wrong input, 130 interrupted\n"
        "example: unlora unlearn --config request.yaml --learning_rate 1e-4"
    )
