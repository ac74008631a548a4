"""Errors that a user can act on. Each one names the argument, its value, the reason and the fix."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from unlora.common.plain import plain

# Maximum number of characters of each part of a message, and of the whole message. Anything longer, such as a pasted
# text, would hide the other parts.
_ARGUMENT, _VALUE, _REASON, _FIX, _MESSAGE = 60, 200, 360, 300, 980
# Key in results that replaces a number that cannot be computed. Its value is the reason.
NOT_AVAILABLE = "not available"
# Number of characters that `short` keeps of a value of any length.
_LONG = 120


@dataclass(frozen=True)
class Problem:
    """One problem with the user's input.

    Args:
        argument: the argument's name, as the user writes it.
        value: the given value.
        reason: why the value cannot work.
        fix: what the user can do about it.
    """

    argument: str
    value: object
    reason: str
    fix: str

    def __str__(self) -> str:
        """Return one line of fewer than 1,000 characters."""
        given = self.value.value if isinstance(self.value, Enum) else self.value
        argument, value = shortened(self.argument, _ARGUMENT), shortened(repr(given), _VALUE)
        return f"{argument}={value}: {shortened(self.reason, _REASON)}. Fix: {shortened(self.fix, _FIX)}."


def shortened(text: str, most: int) -> str:
    """Return the text on one line, with its middle elided if it has more than `most` characters."""
    text = plain(" ".join(text.splitlines()))
    return text if len(text) <= most else f"{text[: most - 60]} ... {text[-50:]}"


class InputError(ValueError):
    """Invalid input, found before long work starts. `problems` lists everything that is wrong.

    The message has one line per problem and fewer than 1,000 characters.
    """

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__(_joined([str(problem) for problem in problems]))

    def __reduce__(self) -> tuple[type[InputError], tuple[Problem, ...]]:
        """Make the error picklable, so that one process can send it to the others."""
        return type(self), self.problems


def _joined(lines: list[str]) -> str:
    """Join the lines. If a message has no room for all, the last line gives the number of those left out."""
    kept = len(lines)
    while kept > 1 and sum(len(line) + 1 for line in lines[:kept]) + 30 > _MESSAGE:
        kept -= 1
    return "\n".join([*lines[:kept], *([f"... and {len(lines) - kept} more"] if kept < len(lines) else [])])


class DivergenceError(RuntimeError):
    """Training was stopped because a loss was not finite or the retain loss exploded."""


def short(value: object) -> object:
    """Return the value for an error message: a long value is replaced by the beginning of its text."""
    return value if len(repr(value)) <= _LONG else f"{str(value)[:_LONG]}…"


@contextmanager
def from_elsewhere(argument: str, value: object, reason: str, fix: str) -> Iterator[None]:
    """Turn errors caused by the contents of an untrusted file into `InputError`.

    Errors of a full or read-only disk are raised unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise InputError(Problem(argument, value, f"{reason} ({type(error).__name__}: {error})", fix)) from error


def raise_if(problems: Iterable[Problem]) -> None:
    """Raise one `InputError` that lists all problems, if there are any."""
    found = list(problems)
    if found:
        raise InputError(*found)


def unknown_name(argument: str, value: object, options: Iterable[str]) -> Problem:
    """Return the problem of a name that is not among `options`, and suggest the closest match."""
    options = sorted(map(str, options))
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}? Known: {', '.join(options)}" if close else f"use one of {', '.join(options)}"
    return Problem(argument, value, "unknown name", fix)
