"""Check the types and ranges of the values of flags, from the command line or a YAML file, without loading torch."""

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

# Settings that can only be turned on by a flag, because a configuration file may have been written by a stranger.
_CONSENTS = ("trust_remote_code",)
# The beginning of argparse's message on a value -> the reason that we give.
_REASONS = {
    "expected one argument": "no value is given",
    "expected at least one argument": "no value is given",
    "invalid int": "it is not a whole number",
    "invalid float": "it is not a number",
    "invalid bool": "it is neither true nor false",
}


def reason_of(error: argparse.ArgumentError, parser: argparse.ArgumentParser) -> tuple[str, str]:
    """Return the reason and the fix for an error of argparse."""
    fix = f"`{' '.join(str(parser.usage).split()[:2])} --help` says what it takes"
    return _REASONS.get(error.message.partition(" value: ")[0], error.message), fix


def check_consent(values: Mapping[str, Any], argv: Sequence[str], argument: str = "config") -> None:
    """Raise `InputError` if a configuration turns on a setting that can only be turned on by the user's own flag."""
    given = {part.partition("=")[0].removeprefix("--") for part in argv}
    raise_if(
        Problem(argument, f"{name}: {values[name]}", "only you can allow this", f"add --{name} true if you do")
        for name in _CONSENTS
        if str(values.get(name)).lower() in ("true", "yes", "1") and name not in given
    )


def typed(
    parser: argparse.ArgumentParser, settings: Sequence[type[DataclassInstance]], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert values, given as text or as read from YAML, to the types of their flags.

    Raises:
        InputError: values cannot be converted. The error lists all of them.
    """
    hints = dict(field_types())
    for kind in settings:
        hints |= annotations_of(kind)
    # A flag that is true by default has a second action, `--no_NAME`, which takes no value and is left out here.
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
    """Convert one value to the type of its flag."""
    name = action.dest
    if value is None:
        if "None" in hint:
            return None
        raise InputError(Problem(name, None, "it cannot be null", "give a value, or remove the line"))
    if isinstance(value, dict):
        if "dict" in hint:
            return json.dumps(value)
        raise InputError(Problem(name, value, "it does not take a mapping", _fix(hint)))
    if not isinstance(value, list):
        one = _converted(parser, action, value)
        return [one] if action.nargs in ("+", "*") and hint.startswith("list") else one
    if "list" not in hint:
        raise InputError(Problem(name, value, "it takes a single value, and this is a list", _fix(hint)))
    if any(part is None or isinstance(part, list | dict) for part in value):
        reason = "the list contains null, a list or a mapping"
        raise InputError(Problem(name, value, reason, "write single values in the list"))
    return [_converted(parser, action, part) for part in value]


def _fix(hint: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return f"write {' or '.join(words.get(part, part) for part in hint.split(' | ') if part != 'None')}"


def _converted(parser: argparse.ArgumentParser, action: argparse.Action, value: object) -> Any:
    if "\0" in str(value):
        raise InputError(Problem(action.dest, value, "it has a null character", "remove this character"))
    if action.nargs == 0:  # a switch, which takes no text
        if not isinstance(value, bool):
            raise InputError(Problem(action.dest, value, "it is neither true nor false", _fix("bool")))
        return value
    try:
        return parser._get_value(action, str(value))
    except argparse.ArgumentError as error:
        raise InputError(Problem(action.dest, value, *reason_of(error, parser))) from error


def check_values(
    settings: Sequence[type[DataclassInstance]],
    values: Mapping[str, Any],
    missing: Mapping[str, Problem] | None = None,
    some: bool = False,
) -> None:
    """Raise one `InputError` with all problems of the values of flags.

    Args:
        settings: the dataclasses of the values. For training, these are the classes that need no torch.
        values: {name: value of the right type}. Missing fields have their defaults.
        missing: {name: problem} for the required values that are missing.
        some: whether other values will be added later, so that only problems of the given values count.
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
    """Yield a problem for each text with a null character. YAML allows this character, but paths and names do not."""
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
