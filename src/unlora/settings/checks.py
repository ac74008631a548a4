"""Checks that all settings share. Each returns the problems that it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_origin, get_type_hints

from unlora.common.errors import Problem, unknown_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


# Type of a non-numeric setting -> its name in errors.
_PLAIN: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    list: "a list of texts",
    Path: "a path",
    NoneType: "nothing",
}


class Checked(Protocol):
    """Settings that can be checked."""

    def problems(self) -> list[Problem]:
        """Return all problems that can be found without data."""


@dataclass(frozen=True)
class Range:
    """The allowed values of a numeric setting.

    Args:
        text: description of the range for errors, such as "at least 1".
        reason: why a number outside it cannot work.
        contains: returns whether a number is in the range.
    """

    text: str
    reason: str
    contains: Callable[[float], bool]

    def problems(self, argument: str, value: float) -> list[Problem]:
        """Return the problem of a number outside the range."""
        return [] if self.contains(value) else [Problem(argument, value, self.reason, f"use {self.text}")]


def at_least(least: float, reason: str) -> Range:
    """Return the range of the numbers greater than or equal to `least`."""
    return Range(f"at least {least}", reason, lambda value: value >= least)


def positive(reason: str = "it must be positive") -> Range:
    """Return the range of the numbers above 0."""
    return Range("a positive value", reason, lambda value: value > 0)


def between(low: float, high: float, reason: str) -> Range:
    """Return the range of the numbers between two bounds, which are excluded."""
    return Range(f"a value between {low} and {high}", reason, lambda value: low < value < high)


# The largest allowed value of any setting. Larger values are mistakes, and not every library accepts them.
MOST = 2**32 - 1
SEED = Range(f"0 to {MOST}", "random generators do not accept this seed", lambda value: 0 <= value <= MOST)


def value_problems(
    settings: DataclassInstance, ranges: Mapping[str, Range] | None = None, infinite: Collection[str] = ()
) -> list[Problem]:
    """Check the type of every value of a settings dataclass, and that numbers are finite and in their range.

    The annotations say which types are allowed. NaN is checked separately from the range, because every comparison with
    NaN is false.

    Args:
        settings: an instance of the dataclass.
        ranges: setting -> its range. For a list of numbers, every element is checked.
        infinite: the settings that may be infinite, which means "no limit".
    """
    hints = get_type_hints(type(settings))
    problems: list[Problem] = []
    for name in (field.name for field in fields(settings)):
        types, value = _types_in(hints[name]), getattr(settings, name)
        if not {int, float} & types:
            problems += _non_numeric_problems(name, value, hints[name])
            continue
        for number in value if isinstance(value, list) else [value]:
            problem = _type_problem(name, number, types) or finite_problem(name, number, name in infinite)
            problems += [problem] if problem else _in_range(name, number, ranges or {})
    return problems


def _non_numeric_problems(name: str, value: object, hint: object) -> list[Problem]:
    """Check the type of a non-numeric setting, if its annotation has only types that a YAML file can hold."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    whole = {get_origin(kind) or kind for kind in kinds}
    if not whole <= _PLAIN.keys() or any(isinstance(value, kind) for kind in whole if kind is not list):
        return []
    if list in whole and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return []
    if Path in whole and isinstance(value, str):
        return []
    wanted = " or ".join(_PLAIN[kind] for kind in whole if kind is not NoneType)
    return [Problem(name, value, f"it is of type {type(value).__name__}", f"use {wanted}")]


def range_problems(settings: object, ranges: Mapping[str, Range]) -> list[Problem]:
    """Check only the ranges, for a dataclass of another library, such as `peft.LoraConfig`."""
    return [problem for name in ranges for problem in _in_range(name, getattr(settings, name), ranges)]


def _types_in(hint: object) -> set[object]:
    """Return all types in an annotation, such as {float, NoneType, ...} for `float | None`."""
    return {hint}.union(*map(_types_in, get_args(hint)))


def _type_problem(name: str, value: object, types: Collection[object]) -> Problem | None:
    if value is None and NoneType in types:
        return None
    wanted, kind = ("a number", Real) if float in types else ("a whole number", Integral)
    if isinstance(value, kind) and not isinstance(value, bool):  # Python counts True and False as whole numbers
        return None
    return Problem(name, value, f"it is of type {type(value).__name__}", f"use {wanted}")


def finite_problem(name: str, value: float | None, may_be_infinite: bool = False) -> Problem | None:
    """Return the problem of a number that is not finite, or whose magnitude exceeds `MOST`."""
    if value is None or (may_be_infinite and value == math.inf):
        return None
    if isinstance(value, Real) and not isinstance(value, Integral) and not math.isfinite(value):
        return Problem(name, value, "it is not a finite number", "use a finite number")
    return None if abs(value) <= MOST else Problem(name, value, "it is too large", f"use at most {MOST}")


def _in_range(name: str, value: float | None, ranges: Mapping[str, Range]) -> list[Problem]:
    return [] if value is None or name not in ranges else ranges[name].problems(name, value)


def choice_problems(settings: object, choices: Mapping[str, Collection[str]]) -> list[Problem]:
    """Check the settings that have a fixed set of values."""
    values = {name: getattr(settings, name) for name in choices}
    return [unknown_name(name, value, choices[name]) for name, value in values.items() if value not in choices[name]]


def missing(settings: object, names: Iterable[str], reason: str = "it is required", fix: str = "") -> list[Problem]:
    """Check that required settings are not empty. By default, the fix is to add the flag."""
    values = {name: getattr(settings, name) for name in names}
    return [Problem(name, value, reason, fix or f"add --{name}") for name, value in values.items() if not value]


def changed(settings: DataclassInstance) -> dict[str, Any]:
    """Return the settings that differ from their defaults."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in values.items() if value != getattr(type(settings), name)}
