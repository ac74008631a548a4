"""`unlora verify`: are data, base and adapter still those of a run?"""

from __future__ import annotations

import argparse
import json

EXAMPLE = "unlora verify run --base models/base"


def run(argv: list[str]) -> int:
    """Says for each part whether it is unchanged; the exit code is 1 unless all of them are."""
    args = parser().parse_args(argv)
    from unlora.record import UNCHANGED, verify

    parts = verify(args.run, args.base, forget_data=args.forget_data, retain_data=args.retain_data)
    if args.json:
        print(json.dumps(parts, indent=2))
    else:
        for name, part in parts.items():
            reason = f" ({part['reason']})" if "reason" in part else ""
            print(f"{name:<8} {part['status']}{reason}")
    return 0 if all(part["status"] == UNCHANGED for part in parts.values()) else 1


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora verify", epilog=f"example: {EXAMPLE}", allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", help="folder of an `unlora unlearn` that has finished")
    flags.add_argument("--base", help="where the base model is now (default: as in the run's configuration)")
    flags.add_argument("--forget_data", help="where the forget set is now (default: likewise)")
    flags.add_argument("--retain_data", help="where the retain set is now (default: likewise)")
    flags.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return flags
