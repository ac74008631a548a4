"""`unlora verify`: are data, base and adapter still those of a run?"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from unlora.cli.output import Answer

EXAMPLE = "unlora verify run --base models/base"


def run(argv: list[str]) -> Answer:
    """Says for each part whether it is unchanged; the exit code is 1 unless all of them are."""
    args = parser().parse_args(argv)
    from unlora.record import UNCHANGED, verify

    parts = verify(args.run, args.base, forget_data=args.forget_data, retain_data=args.retain_data)
    same = all(part["status"] == UNCHANGED for part in parts.values())
    return Answer(parts, lambda: print_parts(parts), code=0 if same else 1)


def print_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a part."""
    for name, part in parts.items():
        reason = f" ({part['reason']})" if "reason" in part else ""
        print(f"{name:<8} {part['status']}{reason}")


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora verify", allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", help="folder of an `unlora unlearn` that has finished")
    flags.add_argument("--base", help="where the base model is now (default: as in the run's configuration)")
    flags.add_argument("--forget_data", help="where the forget set is now (default: likewise)")
    flags.add_argument("--retain_data", help="where the retain set is now (default: likewise)")
    return flags
