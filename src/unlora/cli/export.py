"""`unlora export`: export a run's adapter or the merged model, with a model card, to a folder and to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlora.cli.output import Answer
from unlora.settings import ExportConfig, LoadedRunConfig

EXAMPLE = "unlora export run --output_dir adapter --base_model owner/base --push_to_hub owner/adapter"
SETTINGS = (LoadedRunConfig, ExportConfig)


def run(source: LoadedRunConfig, config: ExportConfig) -> Answer:
    """Export the run. The result is the folder."""
    from unlora.pipeline.export import export_run

    result = export_run(source.run, config, source.trust_remote_code)
    return Answer(result, lambda: _print_result(result), Path(config.output_dir))


def _print_result(result: Mapping[str, Any]) -> None:
    """Print the cost of a smaller rank, and the address of the uploaded repository."""
    from unlora.cli.tables import compression_text

    if result["compression"] is not None:
        print(compression_text(result["compression"]))
    if result["url"] is not None:
        print(result["url"])
