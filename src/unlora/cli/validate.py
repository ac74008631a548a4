"""`unlora validate`: list all problems of a configuration, before anything is loaded."""

from __future__ import annotations

from typing import Any

from unlora.cli import unlearn
from unlora.cli.output import Answer
from unlora.settings import ValidateConfig

EXAMPLE = "unlora validate run.yaml"
FIRST = unlearn.FIRST
SETTINGS = (ValidateConfig, *unlearn.REQUEST)


def run(_: ValidateConfig, *settings: Any) -> Answer:
    """Check the YAML file that is named, or the flags, which are those of `unlora unlearn`."""
    from unlora.pipeline.request import Request

    Request(*settings).check()
    return Answer({"problems": []}, lambda: print("no problems found"))
