"""Errors a user can act on: each names the argument, its value, the reason and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

# What stands in results in place of a number that there cannot be, with the reason as its value.
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what the user gave.

    Args:
        argument: the argument's name, as the user writes it.
        value: what was given.
        reason: why it cannot work.
        fix: what to do about it.
    """

    argument: str
    value: object
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.argument}={self.value!r}: {self.reason}. Fix: {self.fix}."


class InputError(ValueError):
    """Wrong input, found before long work starts. `problems` lists everything that is wrong at once."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[Problem, ...]]:
        """So that the processes of one job can tell each other."""
        return type(self), self.problems


class DivergenceError(RuntimeError):
    """Training was stopped because a loss was not finite or the retain loss exploded."""


def raise_if(problems: Iterable[Problem]) -> None:
    """Raises one `InputError` that lists all `problems`, if there are any."""
    found = list(problems)
    if found:
        raise InputError(*found)


def unknown_name(argument: str, value: object, options: Iterable[str]) -> Problem:
    """The problem of a name that is not among `options`, with the nearest ones suggested."""
    options = sorted(options)
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}? Known: {', '.join(options)}" if close else f"use one of {', '.join(options)}"
    return Problem(argument, value, "unknown name", fix)
