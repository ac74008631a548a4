"""Read untrusted JSON and YAML strictly, with time and memory bounded by the size of the file."""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

_MOST_YAML = 1_000_000  # bytes; PyYAML is slow, and settings are short
_DEEPEST = 20
_TOO_DEEP = "it is nested too deeply"
_LONGEST_NUMBER = 40  # digits


def read_json(path: str | Path, finite: bool = True) -> Any:
    """Return the value in a JSON file.

    Args:
        path: the file.
        finite: whether to refuse NaN and infinities, which are not JSON but which Python's `json` writes by default.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON in UTF-8, is nested too deeply, or contains a duplicate key or a number that is not
            finite.
    """
    return parse_json(_text(path), finite)


def parse_json(text: str, finite: bool = True) -> Any:
    """Return the value of a JSON text. Argument and errors are those of `read_json`."""
    number = _finite if finite else float
    try:
        value = json.loads(
            text, object_pairs_hook=unique_keys, parse_float=number, parse_constant=number, parse_int=_whole_number
        )
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(value)
    return value


def read_yaml(path: str | Path) -> Any:
    """Return the value in a YAML file: text, numbers, true, false, null, and lists and mappings of them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML in UTF-8, is longer than 1 MB or nested too deeply, or contains a duplicate key, a
            value of another type, or an alias (a short file with aliases can expand to a huge value).
    """
    text = _text(path, _MOST_YAML)
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _text(path: str | Path, most: int | None = None) -> str:
    """Return the text of a regular file. Other files, such as pipes, are refused because they may never end."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file" if not Path(path).is_dir() else "it is a folder")
    if most is not None and status.st_size > most:
        raise ValueError(f"it has {status.st_size} bytes, and at most {most} are allowed")
    return Path(path).read_text(encoding="utf-8")


def check_finite(value: Any) -> None:
    """Raise `ValueError` if a number in a JSON value is not finite."""
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            check_finite(part)
    elif isinstance(value, float):
        _finite(str(value))


def _check_depth(value: object, left: int = _DEEPEST) -> None:
    if isinstance(value, list | dict):
        if left == 0:
            raise ValueError(_TOO_DEEP)
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, left - 1)


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dictionary, and raise `ValueError` for a duplicate key."""
    pairs = list(pairs)
    if twice := duplicates(key for key, _ in pairs):
        raise ValueError(f"the key {twice[0]!r} occurs twice")
    return dict(pairs)


def duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, in the order of their first occurrence."""
    return [name for name, count in Counter(names).items() if count > 1]


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:_LONGEST_NUMBER]} is not a finite number")
    return value


def _whole_number(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"{text[:_LONGEST_NUMBER]}... is too large a number")
    return int(text)


class _StrictLoader(yaml.SafeLoader):
    """A loader that accepts only what JSON can represent, without duplicate keys."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, unless it is an alias or nested too deeply."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=self.peek_event().start_mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node, unless JSON has no such type."""
        value = super().construct_object(node, deep)
        if not isinstance(value, str | bool | int | float | list | dict | None):
            problem = f"{type(value).__name__} values are not supported: put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, unless a key is not text or occurs twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if wrong := [key for key in keys if not isinstance(key, str)]:
            problem = f"the key {wrong[0]!r} is not text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if twice := duplicates(keys):
            problem = f"the key {twice[0]!r} occurs twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)
