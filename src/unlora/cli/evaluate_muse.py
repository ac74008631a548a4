"""`unlora evaluate-muse`: MUSE's metrics of a model, with or without an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.common.errors import raise_if
from unlora.report.names import number
from unlora.runs.folder import SCORES
from unlora.settings import ModelConfig, MuseConfig

EXAMPLE = "unlora evaluate-muse --on run --data muse-bench/MUSE-News --retrain_log retrained.json"
LABELS = {
    "verbmem_f": "C1 verbatim memorisation (verbmem_f)",
    "knowmem_f": "C2 knowledge memorisation (knowmem_f)",
    "privleak": "C3 privacy leakage (privleak)",
    "knowmem_r": "C4 utility (knowmem_r)",
}


SETTINGS = (ModelConfig, MuseConfig)


def run(argv: list[str]) -> Answer:
    """Evaluates, writes metrics, scores and texts, and shows the metrics."""
    from unlora.common.distributed import on_main
    from unlora.common.files import write_json
    from unlora.common.progress import shown
    from unlora.evals.muse import evaluate_muse, load_muse, read_muse_scores, summarise_muse, text_count
    from unlora.models.hashes import sets_sha256
    from unlora.pipeline.loading import load_target
    from unlora.pipeline.request import model_problems

    model_config, config = parse(SETTINGS, argv, "evaluate-muse", EXAMPLE)
    config.log_in_run(model_config, SCORES["unlearned"])
    raise_if([*model_problems(model_config), *config.target_problems(model_config), *config.problems()])
    sets = load_muse(config.data, config.ds_size)
    retrained = None if config.retrain_log is None else read_muse_scores(config.retrain_log, sets)
    model, tokenizer = load_target(model_config, config)
    with shown(f"scores {config.log}", " texts", text_count(sets)) as progress:
        scores, texts = evaluate_muse(model, sets, tokenizer, config.eval_batch_size, progress)
    metrics = summarise_muse(scores, retrained)
    log = {"metrics": metrics, "rows": sets_sha256(sets), "scores": scores, "texts": texts}
    on_main(lambda: write_json(config.log, log))
    return Answer(metrics, lambda: print_table(metrics), config.log)


def print_table(metrics: Mapping[str, Any]) -> None:
    """One row a criterion, and what privacy leakage is made of."""
    from rich.console import Console
    from rich.table import Table

    table = Table("criterion", "value")
    for name, label in LABELS.items():
        table.add_row(label, text(metrics[name]))
    for name, values in metrics["membership"].items():
        for column in ("auc", "privleak"):
            table.add_row(f"{name}: {column}", text(values[column]))
    Console().print(table)


def text(value: float | str) -> str:
    """A number, or why there is none."""
    return value if isinstance(value, str) else number(value)
