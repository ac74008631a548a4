"""`unlora report`: write the page of a run again, and show its verdict."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from unlora.cli.output import Answer
from unlora.settings import RunConfig

EXAMPLE = "unlora report run"
SETTINGS = (RunConfig,)


def run(target: RunConfig) -> Answer:
    """Write the page into the run's folder, and show the verdict."""
    from unlora.report.page import write_report
    from unlora.report.read import read_run
    from unlora.report.summary import summarise_run
    from unlora.report.verdict import verdict

    path, found = write_report(Path(target.run)), read_run(Path(target.run))
    told = verdict(found, summarise_run(found))

    def show() -> None:
        print(f"{told.label}\n")
        for part in (told.sentence, told.cost, told.attacks):
            print(fill(part, 100))

    return Answer({"verdict": asdict(told)}, show, path)
