"""`unlora export`: a run's adapter or the merged model, with a model card, in a folder and on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.settings import ExportConfig

EXAMPLE = "unlora export run --output_dir adapter --base_model owner/base --push_to_hub owner/adapter"
ARGUMENT, SETTINGS = "RUN", (ExportConfig,)


def run(argv: list[str]) -> Answer:
    """Exports the run named first; the result is the folder."""
    named = bool(argv) and not argv[0].startswith("-")
    (config,) = parse(SETTINGS, argv[1:] if named else argv, "export RUN", EXAMPLE)
    from unlora.common.errors import InputError, Problem
    from unlora.pipeline.export import export_run

    if not named:
        raise InputError(Problem("RUN", "", "no run is named", "name its folder first: unlora export RUN"))
    result = export_run(argv[0], config)
    return Answer(result, lambda: print_result(result), Path(config.output_dir))


def print_result(result: Mapping[str, Any]) -> None:
    """What fewer ranks cost, and where it was uploaded."""
    from unlora.cli.tables import compression_text

    if result["compression"] is not None:
        print(compression_text(result["compression"]))
    if result["url"] is not None:
        print(result["url"])
