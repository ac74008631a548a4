"""From a command line to settings: every flag is a field of a dataclass, and a YAML file can fill it too.

The help and the names of all flags are known without torch. Only a command that trains, when it runs, takes the flags
of `transformers.TrainingArguments` and their types from `transformers.HfArgumentParser`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from unlora.cli.parser import make_parser, whole_class
from unlora.cli.values import check_consent, check_values, typed
from unlora.common.distributed import on_cpu
from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.common.plugins import FLAG as PLUGIN
from unlora.common.reading import read_yaml
from unlora.runs.folder import continued_settings
from unlora.settings.published import published

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The commands whose `output_dir` is a field of `TrainingArguments`, which has a default of its own.
_WRITES = ("unlearn", "importance", "finetune")
# What argparse says of a value -> what we say.
_REASONS = {
    "expected one argument": "no value is given",
    "expected at least one argument": "no value is given",
    "invalid int": "it is not a whole number",
    "invalid float": "it is not a number",
}


@dataclass(frozen=True)
class CommandLine:
    """A command line whose flags are known to exist, before their values become settings.

    Args:
        command: name of the command.
        settings: its dataclasses.
        argv: the arguments after the command's name.
        defaults: values of flags that may be missing in `argv`, from the YAML file and the run that is continued.
        hands_on: whether the command hands on the flags that it does not know.
    """

    command: str
    settings: Sequence[type[DataclassInstance]]
    argv: list[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hands_on: bool = False


def parse(settings: Sequence[type[DataclassInstance]], argv: Sequence[str], command: str) -> tuple[Any, ...]:
    """Return one instance of each dataclass: `read` and `fill`."""
    return fill(read(settings, argv, command))


def read(
    settings: Sequence[type[DataclassInstance]], argv: Sequence[str], command: str, hands_on: bool = False
) -> CommandLine:
    """Check all flags and all keys in the YAML file of `--config`, names and values, without loading torch.

    Args:
        settings: the command's dataclasses.
        argv: the arguments after the command's name.
        command: its name.
        hands_on: whether flags that the command does not know are for another command, and `--config` with them.

    Raises:
        InputError: unknown flags or keys (all of them, with suggestions), missing, malformed or impossible values, or a
            file that is not a mapping or allows what only a flag can.
    """
    argv = [_with_underscores(part) for part in argv]
    parser = make_parser(command, settings, hands_on=hands_on)
    known, unknown = _parse(parser, argv)
    flags = {action.dest for action in parser._actions} - {"config", "help", "help_all"}
    if not hands_on:
        _check_known(unknown, flags, command)
    config = getattr(known, "config", None) or getattr(known, "file", None)
    values = read_config(config) if config else {}
    raise_if(_unknown("config key", key, flags) for key in values if key not in flags)
    check_consent(values, argv)
    run = getattr(known, "on", None) or values.get("on")
    if run:
        given = {part.partition("=")[0].removeprefix("--").removeprefix("no_") for part in argv if part[:2] == "--"}
        taken_over = continued_settings(str(run), given | values.keys())
        values = {key: value for key, value in taken_over.items() if key in flags} | values
    missing = _missing_of(parser, {**vars(known), **values}, command)
    parser.set_defaults(**typed(parser, settings, values))
    found = vars(_parse(parser, argv)[0])
    check_values(settings, {name: found[name] for name in found.keys() - missing.keys()}, missing)
    return CommandLine(command, settings, argv, values, hands_on)


def fill(line: CommandLine) -> tuple[Any, ...]:
    """Return one instance of each dataclass, those of training with all fields of `TrainingArguments`.

    The arguments that the command does not know come last, as a list, if it hands them on.

    Raises:
        InputError: values that cannot be converted, or what the dataclasses refuse.
    """
    on_cpu()  # creating `TrainingArguments` joins this process to the others of its job
    parser = make_parser(line.command, line.settings, complete=True, hands_on=line.hands_on)
    parser.set_defaults(**typed(parser, line.settings, line.defaults))
    values, unknown = _parse(parser, line.argv)
    if not line.hands_on:
        _check_known(unknown, vars(values), line.command)
    kinds = [whole_class(kind) for kind in line.settings]
    filled = [kind(**{f.name: getattr(values, f.name) for f in fields(kind) if f.init}) for kind in kinds]
    return (*filled, unknown) if line.hands_on else tuple(filled)


def converted(settings: Sequence[type[DataclassInstance]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags, given as text or as YAML has them, with the types of their dataclass fields.

    Raises:
        InputError: names that are not flags, or values that cannot be converted.
    """
    parser = make_parser("unlearn", settings, complete=True)
    flags = {action.dest for action in parser._actions}
    raise_if(_unknown("flag", name, flags) for name in values if name not in flags)
    return typed(parser, settings, values)


def check_handed_on(
    rest: Sequence[str], command: str, settings: Sequence[type[DataclassInstance]], others: Iterable[str]
) -> None:
    """Check the names of flags that are for another command, without loading torch.

    Raises:
        InputError: names that are neither flags of its `settings` nor among `others`.
    """
    known = {action.dest for action in make_parser("unlearn", settings)._actions}.union(others)
    names = [part.partition("=")[0].removeprefix("--") for part in rest if part.startswith("--")]
    _check_known([f"--{name}" for name in names if name not in known], known, command)


def handed_on(line: CommandLine) -> tuple[argparse.Namespace, list[str]]:
    """Return the values of a command line, not yet checked as a whole, and what is for another command."""
    return _parse(make_parser(line.command, line.settings, hands_on=True), line.argv)


def check_some(settings: Sequence[type[DataclassInstance]], values: Mapping[str, Any]) -> None:
    """Check those values that are of these dataclasses, as far as that needs neither torch nor the other values.

    Raises:
        InputError: values that cannot be converted, or are impossible.
    """
    parser = make_parser("unlearn", settings)
    flags = {action.dest for action in parser._actions}
    found = typed(parser, settings, {name: value for name, value in values.items() if name in flags - {"config"}})
    check_values(settings, found, some=True)


def plugin_paths(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files that `--plugin` names, and the other arguments.

    Raises:
        InputError: a flag without a file.
    """
    paths, rest = [], []
    parts = iter(argv)
    for part in parts:
        flag, equals, path = part.partition("=")
        if flag != PLUGIN:
            rest.append(part)
            continue
        path = path if equals else next(parts, "")
        if not path or path.startswith("--"):
            raise InputError(Problem("plugin", path or None, "no file is named", f"write {PLUGIN} FILE.py"))
        paths.append(path)
    return paths, rest


def as_argv(values: Mapping[str, Any]) -> list[str]:
    """Return flags as they stand on the command line, without those that are None."""
    argv = []
    for name, value in values.items():
        if value is not None:
            argv += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(_as_argument(value))])]
    return argv


def read_config(config: str, argument: str = "config") -> dict[str, Any]:
    """Return the mapping in a YAML file, or the flags of a published configuration by its name.

    Raises:
        InputError: there is no such file, or it is not a mapping.
    """
    if config in published():
        return published()[config].settings
    try:
        values = read_yaml(config)
    except FileNotFoundError as error:
        reason = "neither a file nor the name of a published configuration"
        near = difflib.get_close_matches(config, published(), n=1)
        known = f"did you mean {near[0]!r}? " if near else ""
        fix = f"check the path; {known}`unlora ls configurations` lists the names"
        raise InputError(Problem(argument, config, reason, fix)) from error
    except (OSError, ValueError) as error:
        raise InputError(Problem(argument, config, f"cannot be read as YAML ({error})", "check the file")) from error
    if not isinstance(values, dict):
        raise InputError(Problem(argument, config, "not a mapping of flags", "write lines such as 'r: 8'"))
    return values


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the values of the known flags, and the arguments that are left over.

    Raises:
        InputError: a flag without its value, or a value of the wrong type.
    """
    try:
        return parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "arguments").rpartition("/")[2].removeprefix("--").replace("-", "_")
        found = re.search(r"(?:value: |choice: |got )'?(.*?)'?(?: \(choose| but expected|$)", error.message)
        reason = _REASONS.get(error.message.partition(" value: ")[0], error.message)
        fix = f"`{' '.join(str(parser.usage).split()[:2])} --help` says what it takes"
        raise InputError(Problem(name, found and found[1], reason, fix)) from error


def _check_known(unknown: Sequence[str], flags: Iterable[str], command: str) -> None:
    """Raise `InputError` if there are arguments that no flag takes."""
    names = [part.partition("=")[0].removeprefix("--") for part in unknown if part.startswith("--")]
    nearest = {name: difflib.get_close_matches(name, flags, n=1) for name in names}
    listed = f"`unlora {command} --help` lists the flags"
    fixes = {name: f"did you mean {found[0]!r}? {listed}" if found else listed for name, found in nearest.items()}
    raise_if(Problem("flag", name, "unknown name", fix) for name, fix in fixes.items())
    if unknown:
        raise InputError(Problem("arguments", list(unknown), "no flag takes them", "write --flag value"))


def _unknown(argument: str, name: str, flags: Iterable[str]) -> Problem:
    """Return the problem of a name in a configuration that is none of the flags."""
    if name == PLUGIN.removeprefix("--"):
        reason = "a configuration may come from somebody else, and a plugin is code"
        return Problem(argument, name, reason, f"name it on the command line: {PLUGIN} FILE.py")
    return unknown_name(argument, name, flags)


def _missing_of(parser: argparse.ArgumentParser, values: Mapping[str, Any], command: str) -> dict[str, Problem]:
    """Return by name the problems of required settings that are not among the values.

    A required setting has no default, so its dataclass field left `MISSING` as the default of its flag.
    """
    missing = {a.dest: _missing(a, command) for a in parser._actions if values.get(a.dest) is MISSING}
    if command in _WRITES and not (values.get("output_dir") or values.get("dry_run")):
        missing["output_dir"] = Problem("output_dir", None, "it is required", "add --output_dir FOLDER, a new folder")
    return missing


def _missing(action: argparse.Action, command: str) -> Problem:
    if action.option_strings:
        return Problem(action.dest, None, "it is required", f"add {action.option_strings[0]} {action.metavar}")
    name = str(action.metavar)
    return Problem(name, "", f"no {name.lower()} is named", f"write unlora {command} {name}")


def _with_underscores(argument: str) -> str:
    """Return the argument with its flag, if it is one, spelled with underscores: `--retain-log` is `--retain_log`."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def _as_argument(value: object) -> object:
    """Return a value from YAML as it stands on the command line, so that both go through the same conversion."""
    if isinstance(value, dict):
        return json.dumps(value)
    return value if value is None or isinstance(value, list) else str(value)
