"""`unlora verify`: are data, base, adapter and evidence still those of a run?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from unlora.cli.output import Answer

EXAMPLE = "unlora verify run --base models/base"
DATA = {"forget_data": "forget set", "retain_data": "retain set"}
DATA |= {"holdout_data": "unseen rows of the stopping test", "eval_data": "evaluated sets"}


def run(argv: list[str]) -> Answer:
    """Says for each part whether it is unchanged; the exit code is 1 unless all of them are."""
    args = parser().parse_args(argv)
    from unlora.runs.record import UNCHANGED, verify

    parts = verify(args.run, args.base, **{name: getattr(args, name) for name in DATA})
    same = all(part["status"] == UNCHANGED for part in parts.values())
    return Answer(parts, lambda: print_parts(parts), code=0 if same else 1)


def print_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a part."""
    width = max(map(len, parts))
    for name, part in parts.items():
        reason = f" ({part['reason']})" if "reason" in part else ""
        print(f"{name:<{width}} {part['status']}{reason}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora verify", allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", help="folder of an `unlora unlearn` that has finished")
    flags.add_argument("--base", help="where the base model is now (default: as in the run's configuration)")
    for name, what in DATA.items():
        flags.add_argument(f"--{name}", help=f"where they are now: the {what} (default: likewise)")
    return flags
