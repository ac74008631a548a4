"""`unlora unlearn`: run one request, from its data to the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.cli.output import Answer
from unlora.runs.folder import ADAPTER, REPORT
from unlora.settings import (
    DataConfig,
    DryRunConfig,
    EvalConfig,
    ImportanceConfig,
    ModelConfig,
    StoppingConfig,
    UnlearnSettings,
)

EXAMPLE = "unlora unlearn --model_name_or_path my-model --forget_data f.jsonl --retain_data r.jsonl --output_dir run"
FIRST = {
    "the request": ("model_name_or_path", "forget_data", "retain_data", "output_dir", "on"),
    "the method": ("loss", "init", "r"),
    "how strongly it forgets": ("learning_rate", "retain_weight"),
}
# The parts of a `Request`, in its order.
REQUEST = (ModelConfig, DataConfig, ImportanceConfig, EvalConfig, UnlearnSettings, StoppingConfig)
SETTINGS = (*REQUEST, DryRunConfig)


def run(*settings: Any) -> Answer:
    """Run the request. Show the metrics of the original and the unlearned model, the verdict, and the page's path."""
    from unlora.cli.tables import print_forecast, print_verdict
    from unlora.pipeline.request import Request
    from unlora.pipeline.unlearn import rehearse, unlearn
    from unlora.report.verdict import verdict_on

    *parts, mode = settings
    if mode.dry_run:
        expected = rehearse(Request(*parts))
        return Answer(expected.as_json(), lambda: print_forecast(expected))
    result = unlearn(Request(*parts))

    def show() -> None:
        _print_metrics(result.metrics)
        print_verdict(verdict_on(result.folder))
        print(f"\n{result.folder / REPORT}")

    return Answer(result.metrics, show, result.folder / ADAPTER)


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print a table of both models' metrics, and the cost of a smaller rank."""
    from unlora.cli.tables import compression_text, print_comparison

    if "unlearned" in metrics:
        print_comparison({name: metrics[name] for name in ("original", "unlearned")})
    if "compression" in metrics:
        print(compression_text(metrics["compression"]))
