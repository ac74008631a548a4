"""From a command line to settings: every flag is a field of a dataclass, and can also be set in a YAML file.

The names of all flags and their help are known without torch. Only when a command that trains is run, the flags of
`transformers.TrainingArguments` and their types are taken from `transformers.HfArgumentParser`.
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
from unlora.cli.values import check_consent, check_values, reason_of, typed
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


@dataclass(frozen=True)
class CommandLine:
    """A command line whose flags have been checked, but whose values have not yet been converted to settings.

    Args:
        command: name of the command.
        settings: its dataclasses.
        argv: the arguments after the command's name.
        defaults: {flag: value} from the YAML file and the run that is continued, for flags that are not in `argv`.
        forwards: whether the command forwards unknown flags to another command.
    """

    command: str
    settings: Sequence[type[DataclassInstance]]
    argv: list[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    forwards: bool = False


def parse(settings: Sequence[type[DataclassInstance]], argv: Sequence[str], command: str) -> tuple[Any, ...]:
    """Return one instance of each dataclass, with `read` and `fill`."""
    return fill(read(settings, argv, command))


def read(
    settings: Sequence[type[DataclassInstance]], argv: Sequence[str], command: str, forwards: bool = False
) -> CommandLine:
    """Check the names and values of all flags, and of all keys in the YAML file of `--config`, without loading torch.

    Args:
        settings: the command's dataclasses.
        argv: the arguments after the command's name.
        command: the command's name.
        forwards: whether `--config` and unknown flags are for another command.

    Raises:
        InputError: unknown flags or keys (all of them, with suggestions), missing, malformed or impossible values, a
            file that is not a mapping, or one that sets what can only be allowed by a flag.
    """
    argv = [_with_underscores(part) for part in argv]
    parser = make_parser(command, settings, forwards=forwards)
    known, unknown = _parse(parser, argv)
    flags = {action.dest for action in parser._actions} - {"config", "help", "help_all"}
    if not forwards:
        _check_known(unknown, flags, command)
    config = getattr(known, "config", None) or getattr(known, "file", None)
    values = read_config(config) if config else {}
    raise_if(_unknown("config key", key, flags) for key in values if key not in flags)
    check_consent(values, argv)
    run = getattr(known, "on", None) or values.get("on")
    if run:
        given = {part.partition("=")[0].removeprefix("--").removeprefix("no_") for part in argv if part[:2] == "--"}
        inherited = continued_settings(str(run), given | values.keys())
        values = {key: value for key, value in inherited.items() if key in flags} | values
    missing = _missing_of(parser, {**vars(known), **values}, command)
    parser.set_defaults(**typed(parser, settings, values))
    found = vars(_parse(parser, argv)[0])
    check_values(settings, {name: found[name] for name in found.keys() - missing.keys()}, missing)
    return CommandLine(command, settings, argv, values, forwards)


def fill(line: CommandLine) -> tuple[Any, ...]:
    """Return one instance of each dataclass. Those for training have all fields of `TrainingArguments`.

    If the command forwards unknown arguments, they are returned last, as a list.

    Raises:
        InputError: values cannot be converted, or the dataclasses refuse them.
    """
    on_cpu()  # has to come before `TrainingArguments`, which connect this process to the others of its job
    parser = make_parser(line.command, line.settings, complete=True, forwards=line.forwards)
    parser.set_defaults(**typed(parser, line.settings, line.defaults))
    values, unknown = _parse(parser, line.argv)
    if not line.forwards:
        _check_known(unknown, vars(values), line.command)
    kinds = [whole_class(kind) for kind in line.settings]
    filled = [kind(**{f.name: getattr(values, f.name) for f in fields(kind) if f.init}) for kind in kinds]
    return (*filled, unknown) if line.forwards else tuple(filled)


def converted(settings: Sequence[type[DataclassInstance]], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of flags, given as text or as read from YAML, to the types of their dataclass fields.

    Raises:
        InputError: names that are not flags, or values that cannot be converted.
    """
    parser = make_parser("unlearn", settings, complete=True)
    flags = {action.dest for action in parser._actions}
    raise_if(_unknown("flag", name, flags) for name in values if name not in flags)
    return typed(parser, settings, values)


def check_forwarded(
    rest: Sequence[str], command: str, settings: Sequence[type[DataclassInstance]], others: Iterable[str]
) -> None:
    """Check the names of forwarded flags, without loading torch.

    Raises:
        InputError: names that are neither flags of the other command's `settings` nor among `others`.
    """
    known = {action.dest for action in make_parser("unlearn", settings)._actions}.union(others)
    names = [part.partition("=")[0].removeprefix("--") for part in rest if part.startswith("--")]
    _check_known([f"--{name}" for name in names if name not in known], known, command)


def forwarded(line: CommandLine) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed values of a command line, and the arguments that are forwarded to another command."""
    return _parse(make_parser(line.command, line.settings, forwards=True), line.argv)


def check_some(settings: Sequence[type[DataclassInstance]], values: Mapping[str, Any]) -> None:
    """Check the values of fields of these dataclasses, as far as this needs neither torch nor the other values.

    Raises:
        InputError: values that cannot be converted, or are out of range.
    """
    parser = make_parser("unlearn", settings)
    flags = {action.dest for action in parser._actions}
    found = typed(parser, settings, {name: value for name, value in values.items() if name in flags - {"config"}})
    check_values(settings, found, some=True)


def plugin_paths(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files of the `--plugin` flags, and the other arguments.

    Raises:
        InputError: a `--plugin` flag without a file.
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
    """Return {flag: value} as the arguments of a command line, without those that are None."""
    argv = []
    for name, value in values.items():
        if value is not None:
            argv += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(_as_argument(value))])]
    return argv


def read_config(config: str, argument: str = "config") -> dict[str, Any]:
    """Return the flags in a YAML file, or those of a published configuration, given its name.

    Raises:
        InputError: the file does not exist, or it does not contain a mapping.
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
    """Return the values of the known flags, and the remaining arguments.

    Raises:
        InputError: a flag without a value, or a value of the wrong type.
    """
    try:
        return parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        name = (error.argument_name or "arguments").rpartition("/")[2].removeprefix("--").replace("-", "_")
        found = re.search(r"(?:value: |choice: |got )'?(.*?)'?(?: \(choose| but expected|$)", error.message)
        raise InputError(Problem(name, found and found[1], *reason_of(error, parser))) from error


def _check_known(unknown: Sequence[str], flags: Iterable[str], command: str) -> None:
    """Raise `InputError` if there are unknown flags, or arguments that belong to no flag."""
    names = [part.partition("=")[0].removeprefix("--") for part in unknown if part.startswith("--")]
    nearest = {name: difflib.get_close_matches(name, flags, n=1) for name in names}
    listed = f"`unlora {command} --help` lists the flags"
    fixes = {name: f"did you mean {found[0]!r}? {listed}" if found else listed for name, found in nearest.items()}
    raise_if(Problem("flag", name, "unknown name", fix) for name, fix in fixes.items())
    if unknown:
        raise InputError(Problem("arguments", list(unknown), "no flag takes them", "write --flag value"))


def _unknown(argument: str, name: str, flags: Iterable[str]) -> Problem:
    """Return the problem of a name in a configuration that is not a flag."""
    if name == PLUGIN.removeprefix("--"):
        reason = "a configuration may come from somebody else, and a plugin is code"
        return Problem(argument, name, reason, f"name it on the command line: {PLUGIN} FILE.py")
    return unknown_name(argument, name, flags)


def _missing_of(parser: argparse.ArgumentParser, values: Mapping[str, Any], command: str) -> dict[str, Problem]:
    """Return {name: problem} for the required settings that have no value.

    A required setting has no default, so the default of its flag is `MISSING`.
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
    """Spell a flag with underscores: `--retain-log` becomes `--retain_log`. Other arguments are returned unchanged."""
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value if flag.startswith("--") else argument


def _as_argument(value: object) -> object:
    """Return a value from YAML as it is written on the command line, so that both are converted in the same way."""
    if isinstance(value, dict):
        return json.dumps(value)
    return value if value is None or isinstance(value, list) else str(value)
