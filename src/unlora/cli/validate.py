"""`unlora validate`: what is wrong with a configuration, before anything is loaded."""

from __future__ import annotations

from unlora.cli.unlearn import request_from

EXAMPLE = "unlora validate run.yaml"


def run(argv: list[str]) -> int:
    """Checks the YAML file given as first argument, or the same flags as `unlora unlearn`."""
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    request_from(argv, "validate", EXAMPLE).check()
    print("no problems found")
    return 0
