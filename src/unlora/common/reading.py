"""Read JSON and YAML that nobody has checked: strictly, and without ever needing more time or memory than the file."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

_MOST_YAML = 1_000_000  # bytes; the reader is slow, and settings are short
_DEEPEST = 20
_TOO_DEEP = "it is nested too deeply"
_LONGEST_NUMBER = 40  # digits


def read_json(path: str | Path, finite: bool = True) -> Any:
    """Return the value in a JSON file.

    Args:
        path: of the file.
        finite: whether to refuse NaN and infinities, which JSON lacks but Python's writer writes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON in UTF-8, is nested too deeply, has a key twice, or a number that is not finite.
    """
    return parse_json(_text(path), finite)


def parse_json(text: str, finite: bool = True) -> Any:
    """Return the value of a JSON text, as `read_json`."""
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
        OSError: it cannot be read.
        ValueError: it is not YAML in UTF-8, is longer than 1 MB or nested too deeply, has a key twice, or uses aliases
            (with which a short file can stand for an endless value) or other types.
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
    """Return the text of a regular file. Others, such as pipes, may have no end."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file" if not Path(path).is_dir() else "it is a folder")
    if most is not None and status.st_size > most:
        raise ValueError(f"it has {status.st_size} bytes, and may have {most}")
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
    """Return the pairs of a JSON object as a dictionary; a key that is there twice raises `ValueError`."""
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in found if keys.count(key) > 1)!r} is there twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:_LONGEST_NUMBER]} is not a finite number")
    return value


def _whole_number(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"{text[:_LONGEST_NUMBER]}... is too large a number")
    return int(text)


class _StrictLoader(yaml.SafeLoader):
    """Reads what JSON could say as well, and nothing twice."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, unless it is an alias or too deep inside others."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=self.peek_event().start_mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node, unless it is of another type than JSON has."""
        value = super().construct_object(node, deep)
        if not isinstance(value, str | bool | int | float | list | dict | None):
            problem = f"{type(value).__name__} values are not supported: put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are text, each once."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if wrong := next((key for key in keys if not isinstance(key, str)), None):
            problem = f"the key {wrong!r} is not text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if twice := next((key for place, key in enumerate(keys) if key in keys[:place]), None):
            problem = f"the key {twice!r} is there twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)
