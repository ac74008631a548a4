"""`unlora verify`: check whether the data, the base, the adapter and the logs of a run are unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from unlora.cli.output import Answer
from unlora.settings import VerifyConfig

EXAMPLE = "unlora verify run --base models/base"
SETTINGS = (VerifyConfig,)


def run(config: VerifyConfig) -> Answer:
    """Report for each part whether it is unchanged. The exit code is 0 if all parts are, and 1 otherwise."""
    from unlora.runs.verify import UNCHANGED, verify

    parts = verify(**asdict(config))
    same = all(part["status"] == UNCHANGED for part in parts.values())
    return Answer(parts, lambda: _print_parts(parts), code=0 if same else 1)


def _print_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line for each part."""
    width = max(map(len, parts))
    for name, part in parts.items():
        reason = f" ({part['reason']})" if "reason" in part else ""
        print(f"{name:<{width}} {part['status']}{reason}")
