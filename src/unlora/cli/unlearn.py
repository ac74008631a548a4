"""`unlora unlearn`: one request, whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.runs.folder import ADAPTER
from unlora.settings import DataConfig, EvalConfig, ImportanceConfig, ModelConfig, StoppingConfig, UnlearnSettings

EXAMPLE = "unlora unlearn --model_name_or_path my-model --forget_data f.jsonl --retain_data r.jsonl --output_dir run"


SETTINGS = (ModelConfig, DataConfig, ImportanceConfig, EvalConfig, StoppingConfig, UnlearnSettings)
TRAINING = True


def run(argv: list[str]) -> Answer:
    """Runs the request, and shows the metrics before and after, and the page's path."""
    from unlora.pipeline.unlearn import unlearn
    from unlora.runs.folder import REPORT

    result = unlearn(request_from(argv, "unlearn", EXAMPLE))

    def show() -> None:
        print_metrics(result.metrics)
        print(result.folder / REPORT)

    return Answer(result.metrics, show, result.folder / ADAPTER)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """One table of both models, and what fewer ranks cost."""
    from unlora.cli.tables import compression_text, print_comparison

    if "unlearned" in metrics:
        print_comparison({name: metrics[name] for name in ("original", "unlearned")})
    if "compression" in metrics:
        print(compression_text(metrics["compression"]))


def request_from(argv: list[str], command: str, example: str):  # type: ignore[no-untyped-def]  # imported lazily
    """The request that flags and YAML describe."""
    from unlora.pipeline.request import Request
    from unlora.training.config import UnlearnConfig

    classes = (ModelConfig, DataConfig, ImportanceConfig, EvalConfig, UnlearnConfig, StoppingConfig)
    return Request(*parse(classes, argv, command, example))
