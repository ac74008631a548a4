"""The parser and the help of a command: each flag is a field of one of its dataclasses."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pkgutil import resolve_name
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from unlora.common.plugins import FLAG as PLUGIN
from unlora.settings import FinetuneSettings, UnlearnSettings
from unlora.settings.inherited import field_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HELP = ("-h", "--help")
HELP_ALL = "--help_all"
# Flags of every command that only affect what is printed: see `unlora.cli.output`.
OUTPUT = {
    "--quiet": "print errors, and at the end the path of the result, but nothing else",
    "--json": "print the result as one JSON document, and nothing else, on stdout",
}
# Training settings without torch -> the class that adds all fields of `transformers.TrainingArguments`.
_TRAINING = {
    UnlearnSettings: "unlora.training.config:UnlearnConfig",
    FinetuneSettings: "unlora.training.finetune:FinetuneConfig",
}


def help_text(
    command: str,
    settings: Sequence[type[DataclassInstance]],
    about: str,
    example: str,
    first: Mapping[str, Sequence[str]],
    complete: bool = False,
) -> str:
    """Return what `unlora COMMAND --help` prints.

    Args:
        command: name of the command.
        settings: its dataclasses.
        about: what the command does.
        example: an example of a command line.
        first: {group: most important flags}. Only these are shown, unless it is empty or `complete` is true.
        complete: whether to show all flags, with the fields of `TrainingArguments`. This loads torch.
    """
    parser = make_parser(command, settings, complete)
    if first and not complete:
        _show_only(parser, first)
    parser.description = f"{about[:1].upper()}{about[1:]}."
    shared = parser.add_argument_group("every command")
    for flag, text in OUTPUT.items():
        shared.add_argument(flag, action="store_true", help=text)
    text = "load your own losses, initialisers, teachers and benchmarks from this file; may be repeated"
    shared.add_argument(PLUGIN, metavar="FILE.py", help=text)
    return f"{parser.format_help().rstrip()}\n\nexample:\n  {example}"


def _show_only(parser: argparse.ArgumentParser, first: Mapping[str, Sequence[str]]) -> None:
    """Hide the help of all flags except those in `first`, which are shown in its groups, and positional arguments."""
    actions = {action.dest: action for action in parser._actions if action.help is not argparse.SUPPRESS}
    options, *groups = parser._action_groups[2:]  # the first two are argparse's default groups, which are empty here
    for group in groups:  # a group with neither a description nor flags is not printed
        group.description = None
        group._group_actions[:] = [action for action in group._group_actions if not action.option_strings]
    for title, names in first.items():
        parser.add_argument_group(title)._group_actions.extend(actions[name] for name in names)
    shown = {"help", "config", "help_all"}.union(*first.values())
    hidden = sum(name not in shown and bool(action.option_strings) for name, action in actions.items())
    text = f"list the other {hidden} flags"
    if "help_all" in actions:
        text += ", and every field of transformers.TrainingArguments"
    options._group_actions.append(argparse.Action([HELP_ALL], "help_all", nargs=0, help=text))


def make_parser(
    command: str, settings: Iterable[type[DataclassInstance]], complete: bool = False, forwards: bool = False
) -> argparse.ArgumentParser:
    """Return the parser of a command, with one group of flags for each dataclass.

    Args:
        command: name of the command.
        settings: its dataclasses.
        complete: whether to add the fields of `TrainingArguments` with their types and help, instead of only their
            names. This loads torch.
        forwards: whether `--config` is for another command.
    """
    parents = [_training_parser(whole_class(kind)) for kind in settings if complete and kind in _TRAINING]
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, formatter_class=_Formatter, parents=parents
    )
    options = parser.add_argument_group("options")
    options.add_argument(*HELP, action="store_true", help="print this help")
    if not forwards:
        text = "YAML file of flags, or the name of a published configuration"
        options.add_argument("--config", metavar="RUN.yaml", help=text)
    usage = ["unlora", command]
    for kind in settings:
        known = {action.dest for action in parser._actions}
        own = [f for f in fields(kind) if f.name not in known]  # some settings belong to several benchmarks
        group = parser.add_argument_group((kind.__doc__ or kind.__name__).partition("\n")[0].rstrip("."))
        hints = get_type_hints(kind)
        usage += [shown for f in own if (shown := _add_field(group, f, hints[f.name]))]
        if kind in _TRAINING and not complete:
            _add_training_names(parser, command, kind)
    parser.usage = " ".join([*usage, "[--config RUN.yaml]", "[--flag value ...]"])
    return parser


class _Formatter(argparse.HelpFormatter):
    """Leave room for long names, and show defaults as they are written on the command line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.help or action.nargs == 0 or action.default in (None, MISSING, "", []):
            return action.help
        default = _shown(action.default).replace("%", "%%")
        return f"{action.help} (default: {default})"


def _add_field(group: argparse._ArgumentGroup, field: Field[Any], hint: object) -> str:
    """Add the argument for a field. Return its part of the usage line, which is empty unless it is positional."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    several = get_origin(options[0]) is list
    kind = get_args(options[0])[0] if several else options[0]
    convert: Callable[[str], Any] = str if str in options else _boolean if kind is bool else kind
    default = field.default if field.default_factory is MISSING else field.default_factory()
    text = field.metadata["help"].replace("%", "%%")
    if field.metadata.get("positional"):
        metavar, nargs = field.metadata["metavar"], "*" if several else "?"
        group.add_argument(field.name, metavar=metavar, nargs=nargs, type=convert, default=default, help=text)
        shown = f"{metavar} ..." if several else metavar
        return shown if default is MISSING else f"[{shown}]"
    if field.metadata.get("switch"):
        group.add_argument(f"--{field.name}", action="store_true", help=text)
        return ""
    shape = {"nargs": "+"} if several else {"nargs": "?", "const": True} if kind is bool else {}
    metavar = kind.__name__.upper()
    group.add_argument(f"--{field.name}", metavar=metavar, type=convert, default=default, help=text, **shape)
    if default is True:
        group.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
    return ""


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"invalid bool value: {text!r}")
    return values[text.lower()]


def whole_class(kind: type[DataclassInstance]) -> type[DataclassInstance]:
    """Return the class to instantiate: for training settings, the one with all fields of `TrainingArguments`."""
    return resolve_name(_TRAINING[kind]) if kind in _TRAINING else kind


def _training_parser(kind: type[DataclassInstance]) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    parser: argparse.ArgumentParser = HfArgumentParser(kind, add_help=False)
    parser._optionals.title = "training arguments"
    for action in parser._actions:
        if action.nargs is None and action.type is string_to_bool:
            action.nargs, action.const = "?", True  # HfArgumentParser does not do this for `bool | None`
    return parser


def _add_training_names(parser: argparse.ArgumentParser, command: str, kind: type[DataclassInstance]) -> None:
    """Let the parser accept the fields of `TrainingArguments`, whose exact types are only known after loading torch."""
    text = f"every field of transformers.TrainingArguments is a flag too: unlora {command} {HELP_ALL} lists them"
    group = parser.add_argument_group("training arguments", text)
    group.add_argument("--output_dir", metavar="STR", help="Where the result goes: a new folder. Required.")
    group.add_argument(HELP_ALL, action="store_true", help="list these flags, too")
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    for name, hint in field_types().items():
        if name in {f.name for f in fields(kind)} | {"output_dir"}:
            continue
        kinds = set(hint.split(" | ")) - {"None"}
        if kinds == {"bool"}:
            group.add_argument(f"--{name}", nargs="?", const=True, type=_boolean, **hidden)
            group.add_argument(f"--no_{name}", dest=name, action="store_false", **hidden)
        elif "list" in hint:
            group.add_argument(f"--{name}", nargs="+", **hidden)
        else:
            convert: Callable[[str], Any] = int if kinds == {"int"} else float if kinds == {"float"} else str
            group.add_argument(f"--{name}", nargs="?" if "bool" in kinds else None, type=convert, **hidden)


def _shown(value: object) -> str:
    """Return a default as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(_shown, value)) if isinstance(value, list) else str(value)
