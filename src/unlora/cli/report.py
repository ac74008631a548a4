"""`unlora report`: write the page of a run again, and show its verdict."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from unlora.cli.output import Answer

EXAMPLE = "unlora report run"


def run(argv: list[str]) -> Answer:
    """Write the page into the run's folder, and show the verdict."""
    args = parser().parse_args(argv)
    from unlora.report.page import write_report
    from unlora.report.read import read_run
    from unlora.report.summary import summarise_run
    from unlora.report.verdict import verdict

    path, found = write_report(args.run), read_run(args.run)
    told = verdict(found, summarise_run(found))

    def show() -> None:
        print(f"{told.label}\n")
        for part in (told.sentence, told.cost, told.attacks):
            print(fill(part, 100))

    return Answer({"verdict": asdict(told)}, show, path)


def parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    flags = argparse.ArgumentParser(prog="unlora report", allow_abbrev=False)
    flags.add_argument("run", metavar="RUN", type=Path, help="folder of a finished `unlora unlearn`")
    return flags
