"""Declare a setting: its default and its help text."""

from __future__ import annotations

from copy import copy
from dataclasses import field
from typing import Any


def annotations_of(kind: type) -> dict[str, str]:
    """Return {field: its annotation as in the source} of a dataclass and its base classes.

    The types in `dataclasses.fields` cannot be used, because `HfArgumentParser` replaces them.
    """
    written = [vars(base).get("__annotations__", {}) for base in reversed(kind.__mro__)]
    return {name: str(annotation) for own in written for name, annotation in own.items()}


def setting(default: object, help_text: str, **metadata: object) -> Any:
    """Return the dataclass field of a setting, in the form that the command line and `HfArgumentParser` read.

    Args:
        default: the value if the user gives none. Each instance gets its own copy of a list.
        help_text: its text in `--help`.
        metadata: further properties for the command line: `positional` (given without a flag) with its `metavar`, and
            `switch` (a flag without a value).
    """
    metadata["help"] = help_text
    if isinstance(default, list):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
