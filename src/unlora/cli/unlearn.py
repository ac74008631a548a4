"""`unlora unlearn`: one request, whole."""

from __future__ import annotations

from unlora.cli.arguments import parse

EXAMPLE = "unlora unlearn --model_name_or_path my-model --forget_data f.jsonl --retain_data r.jsonl --output_dir run"


def run(argv: list[str]) -> int:
    """Runs the request and prints the metrics before and after, the page's path, and the adapter's last."""
    from unlora.cli.tables import print_comparison
    from unlora.config import ADAPTER
    from unlora.pipeline import unlearn
    from unlora.report import REPORT

    result = unlearn(request_from(argv, "unlearn", EXAMPLE))
    if "after" in result.metrics:
        print_comparison({name: result.metrics[name] for name in ("before", "after")})
    if "compression" in result.metrics:
        print(
            "exported at rank {rank}: relative error of the weight change {relative_error:.3g}, of a single module "
            "up to {largest_relative_error:.3g}".format(**result.metrics["compression"])
        )
    print(result.folder / REPORT)
    print(result.folder / ADAPTER)
    return 0


def request_from(argv: list[str], command: str, example: str):  # type: ignore[no-untyped-def]  # imported lazily
    """The request that flags and YAML describe."""
    from unlora.config import DataConfig, EvalConfig, ImportanceConfig, ModelConfig, StoppingConfig
    from unlora.pipeline import Request
    from unlora.trainer import UnlearnConfig

    classes = (ModelConfig, DataConfig, ImportanceConfig, EvalConfig, UnlearnConfig, StoppingConfig)
    return Request(*parse(classes, argv, command, example))
