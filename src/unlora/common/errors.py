"""Errors that a user can act on. Each names the argument, its value, the reason and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

# The key in results that replaces a number which cannot be computed. Its value is the reason.
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the user's input.

    Args:
        argument: the argument's name, as the user writes it.
        value: the given value.
        reason: why it cannot work.
        fix: what the user can do about it.
    """

    argument: str
    value: object
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.argument}={self.value!r}: {self.reason}. Fix: {self.fix}."


class InputError(ValueError):
    """Wrong input, found before long work starts. `problems` lists everything that is wrong."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[Problem, ...]]:
        """Make the error picklable, so that one process can send it to the others."""
        return type(self), self.problems


class DivergenceError(RuntimeError):
    """Training was stopped because a loss was not finite or the retain loss exploded."""


def raise_if(problems: Iterable[Problem]) -> None:
    """Raise one `InputError` that lists all problems, if there are any."""
    found = list(problems)
    if found:
        raise InputError(*found)


def unknown_name(argument: str, value: object, options: Iterable[str]) -> Problem:
    """Return the problem of a name that is not among `options`, with the nearest one as a suggestion."""
    options = sorted(options)
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}? Known: {', '.join(options)}" if close else f"use one of {', '.join(options)}"
    return Problem(argument, value, "unknown name", fix)
