"""`unlora report`: write the page of a run again, and show its verdict."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from unlora.cli.output import Answer
from unlora.common.errors import from_elsewhere
from unlora.settings import RunConfig

EXAMPLE = "unlora report run"
SETTINGS = (RunConfig,)


def run(target: RunConfig) -> Answer:
    """Write the page into the run's folder, and show the verdict."""
    from unlora.cli.tables import print_verdict
    from unlora.report.page import write_report
    from unlora.report.verdict import verdict_on

    with from_elsewhere("RUN", target.run, "its files are not those that unlora writes", "name another run"):
        path, told = write_report(Path(target.run)), verdict_on(Path(target.run))
    return Answer({"verdict": asdict(told)}, lambda: print_verdict(told), path)
