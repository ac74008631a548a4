"""Flags from dataclasses, and YAML files that fill them: `--config run.yaml`, or a published one by name; flags win."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unlora.cli.help import ALL
from unlora.common.distributed import on_cpu
from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.runs.folder import continued_settings


def parse(classes: Sequence[Any], argv: list[str], command: str, example: str) -> tuple[Any, ...]:
    """One instance of each dataclass, from flags, the YAML file named by `--config` and the run named by `--on`.

    With `--help_all` it prints all flags and exits.

    Raises:
        InputError: unknown keys or flags (all of them, with suggestions), or a file that is no YAML mapping.
    """
    from transformers import HfArgumentParser

    on_cpu()  # a `TrainingArguments` joins this process to the others of its job
    parser = HfArgumentParser(
        classes,
        prog=f"unlora {command}",
        usage=f"unlora {command} [--config RUN.yaml] [--flag value ...]",
        epilog=f"example: {example}",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if ALL in argv:
        argv = ["--help"]
    parser.add_argument("--config", metavar="RUN.yaml", help="YAML file of flags, or a published configuration by name")
    flags = {action.dest: action for action in parser._actions}
    config = path_flag(argv, "config")
    values = {} if config is None else read_yaml(config)
    raise_if(unknown_name("config key", key, flags) for key in values if key not in flags)
    run = path_flag(argv, "on") or values.get("on")
    if run and "on" in flags:
        values = {key: value for key, value in continued_settings(str(run)).items() if key in flags} | values
    for key in values:
        flags[key].required = False
    parser.set_defaults(**{key: as_flag(value) for key, value in values.items()})
    *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    names = [name.split("=")[0].removeprefix("--") for name in unknown if name.startswith("--")]
    raise_if(unknown_name("flag", name, flags) for name in names)
    if unknown:
        raise InputError(Problem("arguments", unknown, "no flag takes them", "write --flag value"))
    return tuple(part for part in parsed if not isinstance(part, argparse.Namespace))


def converted(classes: Sequence[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags, given as text or as YAML has them, with the types of their dataclass fields.

    Raises:
        InputError: names that are no flags, or values of another type.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(classes, allow_abbrev=False)
    flags = {action.dest: action for action in parser._actions}
    raise_if(unknown_name("flag", name, flags) for name in values if name not in flags)
    found = {}
    for name, value in values.items():
        action = flags[name]
        parts = value if isinstance(value, list) else [value]
        try:
            typed = [None if part is None else parser._get_value(action, as_flag(part)) for part in parts]
            for part in typed:
                if part is not None:
                    parser._check_value(action, part)
        except argparse.ArgumentError as error:
            raise InputError(Problem(name, value, str(error.message), f"see `--help` for {name}")) from error
        found[name] = typed if isinstance(value, list) or action.nargs in ("+", "*") else typed[0]
    return found


def path_flag(argv: Sequence[str], name: str) -> Path | None:
    """The path after `--name`, if any."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(f"--{name}", dest="path", type=Path)
    path: Path | None = finder.parse_known_args(list(argv))[0].path
    return published().get(str(path), path) if name == "config" else path


def published() -> dict[str, Path]:
    """The settings of published results, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "published").glob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(published())
        reason = "neither a file nor the name of a published configuration"
        raise InputError(Problem("config", str(path), reason, f"check the path, or use one of {known}")) from error
    except (OSError, yaml.YAMLError) as error:
        raise InputError(Problem("config", str(path), f"cannot be read as YAML: {error}", "check the file")) from error
    if not isinstance(values, dict):
        raise InputError(Problem("config", str(path), "not a mapping of flags", "write lines such as 'r: 8'"))
    return values


def as_flag(value: Any) -> Any:
    """A YAML value as it would stand on the command line, so that both go through the same conversion."""
    if isinstance(value, dict):
        return json.dumps(value)
    if value is None or isinstance(value, list):
        return value
    return str(value)
