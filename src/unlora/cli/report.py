"""`unlora report`: the page of a run, written again."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlora.cli.output import Answer

EXAMPLE = "unlora report run"


def run(argv: list[str]) -> Answer:
    """Writes the page into the run's folder."""
    args = parser().parse_args(argv)
    from unlora.report import write_report

    return Answer({}, lambda: None, write_report(args.run))


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    flags = argparse.ArgumentParser(prog="unlora report", allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished `unlora unlearn`")
    return flags
