"""The values of flags, from the command line or from a YAML file: their types and ranges, known without torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.common.errors import InputError, Problem, raise_if, short
from unlora.settings import FinetuneSettings, UnlearnSettings
from unlora.settings.checks import value_problems
from unlora.settings.inherited import field_types, inherited_problems
from unlora.settings.setting import annotations_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Settings with which the user allows something that only a flag can allow, because a file may be a stranger's.
_CONSENTS = ("trust_remote_code",)


def check_consent(values: Mapping[str, Any], argv: Sequence[str], argument: str = "config") -> None:
    """Raise `InputError` if a configuration allows what only the user's own flag can allow."""
    given = {part.partition("=")[0].removeprefix("--") for part in argv}
    raise_if(
        Problem(argument, f"{name}: {values[name]}", "only you can allow this", f"add --{name} true if you do")
        for name in _CONSENTS
        if str(values.get(name)).lower() in ("true", "yes", "1") and name not in given
    )


def typed(
    parser: argparse.ArgumentParser, settings: Sequence[type[DataclassInstance]], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return values, given as text or as YAML has them, with the types of their flags.

    Raises:
        InputError: all values that cannot be converted.
    """
    hints = dict(field_types())
    for kind in settings:
        hints |= annotations_of(kind)
    # A flag that is true by default has a second one, `--no_NAME`, which takes no value.
    named = [
        action for action in parser._actions if f"--{action.dest}" in (action.option_strings or [f"--{action.dest}"])
    ]
    actions = {action.dest: action for action in named}
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        try:
            found[name] = _typed(parser, actions[name], value, hints.get(name, "str"))
        except InputError as error:
            problems += error.problems
    raise_if(problems)
    return found


def _typed(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, hint: str) -> Any:
    """Return one value with the type of its flag."""
    name = action.dest
    if value is None:
        if "None" in hint:
            return None
        raise InputError(Problem(name, None, "null is not a value of it", "give one, or remove the line"))
    if isinstance(value, dict):
        if "dict" in hint:
            return json.dumps(value)
        raise InputError(Problem(name, value, "it does not take a mapping", _fix(hint)))
    if not isinstance(value, list):
        one = _converted(parser, action, value)
        return [one] if action.nargs in ("+", "*") and hint.startswith("list") else one
    if "list" not in hint:
        raise InputError(Problem(name, value, "it takes one value, and this is a list", _fix(hint)))
    if any(part is None or isinstance(part, list | dict) for part in value):
        raise InputError(Problem(name, value, "not every part of it is a value", "write single values in the list"))
    return [_converted(parser, action, part) for part in value]


def _fix(hint: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return f"write {' or '.join(words.get(part, part) for part in hint.split(' | ') if part != 'None')}"


def _converted(parser: argparse.ArgumentParser, action: argparse.Action, value: object) -> Any:
    if "\0" in str(value):
        raise InputError(Problem(action.dest, value, "it has a null character, which no name has", "remove it"))
    if action.nargs == 0:  # a switch, which takes no text
        if not isinstance(value, bool):
            raise InputError(Problem(action.dest, value, "it is neither true nor false", _fix("bool")))
        return value
    try:
        return parser._get_value(action, str(value))
    except argparse.ArgumentError as error:
        fix = f"`{' '.join(str(parser.usage).split()[:2])} --help` says what it takes"
        raise InputError(Problem(action.dest, value, error.message, fix)) from error


def check_values(
    settings: Sequence[type[DataclassInstance]],
    values: Mapping[str, Any],
    missing: Mapping[str, Problem] | None = None,
    some: bool = False,
) -> None:
    """Raise one `InputError` with all that is wrong with the values of flags, each of its type.

    Args:
        settings: the dataclasses that they are for. Of our training settings, those that need no torch.
        values: by name. Fields that are missing have their defaults.
        missing: by name the problems of values that are required and not given.
        some: whether other values will be added, so that only problems of these are problems.
    """
    raise_if(_null_problems(values))
    problems = []
    for kind in settings:
        required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
        own = dict.fromkeys(required, "") | {f.name: values[f.name] for f in fields(kind) if f.name in values}
        problems += _problems(kind(**own))
        if kind in (UnlearnSettings, FinetuneSettings):
            others = field_types().keys() - {f.name for f in fields(kind)}
            problems += inherited_problems({name: values[name] for name in values if name in others})
    different = {str(problem): problem for problem in problems}  # several dataclasses may have the same field
    absent = missing or {}
    told = {*absent, *(problem.argument for problem in absent.values())}
    rest = [problem for problem in different.values() if problem.argument not in told]
    raise_if([*absent.values(), *(problem for problem in rest if not some or problem.argument in values)])


def _null_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the texts with a null character, which a YAML file can have. No path and no name can."""
    for name, value in values.items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str | Path) and "\0" in str(text) for text in texts):
            yield Problem(name, short(value), "it has a null character", "remove this character")


def _problems(settings: Any) -> list[Problem]:
    for name in ("own_problems", "problems"):
        if hasattr(settings, name):
            found: list[Problem] = getattr(settings, name)()
            return found
    return value_problems(settings)
