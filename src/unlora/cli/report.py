"""`unlora report`: the page of a run, written again."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = "unlora report run"


def run(argv: list[str]) -> int:
    """Writes the page into the run's folder and prints its path."""
    flags = argparse.ArgumentParser(prog="unlora report", epilog=f"example: {EXAMPLE}", allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished `unlora unlearn`")
    from unlora.report import write_report

    print(write_report(flags.parse_args(argv).run))
    return 0
