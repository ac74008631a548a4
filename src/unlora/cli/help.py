"""The help of a command, from its settings' dataclasses or its parser, without loading torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from types import ModuleType
from typing import Any

from unlora.cli.output import FLAGS

ASKED = ("-h", "--help")
# The flag that lists the training arguments of transformers too, for which torch is loaded.
ALL = "--help_all"


def help_text(command: str, module: ModuleType, about: str) -> str:
    """What `unlora COMMAND --help` prints.

    Args:
        command: its name.
        module: with an EXAMPLE, and a `parser()` or SETTINGS, the dataclasses of its flags; these may go with an
            ARGUMENT that comes first, and with TRAINING if the training arguments are flags, too.
        about: what the command does.
    """
    if hasattr(module, "parser"):
        parser = module.parser()
    else:
        training = getattr(module, "TRAINING", False)
        parser = settings_parser(command, module.SETTINGS, getattr(module, "ARGUMENT", ""), training)
    parser.description = f"{about[:1].upper()}{about[1:]}."
    output = parser.add_argument_group("output")
    for flag, text in FLAGS.items():
        output.add_argument(flag, action="store_true", help=text)
    return f"{parser.format_help().rstrip()}\n\nexample:\n  {module.EXAMPLE}"


def settings_parser(
    command: str, settings: Sequence[Any], argument: str = "", training: bool = False
) -> argparse.ArgumentParser:
    """A parser that shows one group of flags a dataclass; the flags themselves are read by `arguments.parse`."""
    usage = " ".join(
        ["unlora", command, *([argument] if argument else []), "[--config RUN.yaml]", "[--flag value ...]"]
    )
    parser = argparse.ArgumentParser(usage=usage, add_help=False, formatter_class=Wide)
    common = parser.add_argument_group("options")
    common.add_argument("--config", metavar="RUN.yaml", help="YAML file of flags, or a published configuration by name")
    common.add_argument("--help", action="store_true", help="print this")
    shown: set[str] = set()  # the settings of several benchmarks may share a name
    for kind in settings:
        group = parser.add_argument_group((kind.__doc__ or kind.__name__).partition("\n")[0].rstrip("."))
        for field in fields(kind):
            if field.name not in shown:
                _add(group, field)
            shown.add(field.name)
    if training:
        text = f"every field of transformers.TrainingArguments is a flag too: unlora {command} {ALL} lists them"
        group = parser.add_argument_group("training arguments", text)
        group.add_argument("--output_dir", metavar="STR", help="where the result goes: a new folder. Required.")
        group.add_argument(ALL, action="store_true", help="list these, too")
    return parser


class Wide(argparse.HelpFormatter):
    """Room for the longer names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _add(group: Any, field: Field[Any]) -> None:
    kind = str(field.type).partition(" | ")[0]
    several = kind.startswith("list[")
    default = field.default if field.default_factory is MISSING else field.default_factory()
    shown = "" if default in (None, MISSING, "", []) else f" (default: {_written(default)})"
    metavar = kind.removeprefix("list[").rstrip("]").upper()
    text = f"{field.metadata['help']}{shown}".replace("%", "%%")
    group.add_argument(f"--{field.name}", metavar=metavar, nargs="+" if several else None, help=text)


def _written(value: Any) -> str:
    """A value as it stands on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(_written, value)) if isinstance(value, list) else str(value)
