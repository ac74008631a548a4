"""`unlora validate`: what is wrong with a configuration, before anything is loaded."""

from __future__ import annotations

from unlora.cli.output import Answer
from unlora.cli.unlearn import SETTINGS, TRAINING, request_from

EXAMPLE, ARGUMENT = "unlora validate run.yaml", "[RUN.yaml]"
__all__ = ["ARGUMENT", "EXAMPLE", "SETTINGS", "TRAINING", "run"]


def run(argv: list[str]) -> Answer:
    """Checks the YAML file given as first argument, or the same flags as `unlora unlearn`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    request_from(argv, "validate", EXAMPLE).check()
    return Answer({"problems": []}, lambda: print("no problems found"))
