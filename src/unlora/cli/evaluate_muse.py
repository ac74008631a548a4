"""`unlora evaluate-muse`: MUSE's metrics of a model, with or without an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unlora.cli.arguments import parse
from unlora.cli.evaluate import ReportedConfig, load_target, required
from unlora.cli.output import Answer
from unlora.cli.tables import number
from unlora.config import SCORES, ModelConfig
from unlora.errors import Problem, raise_if

EXAMPLE = "unlora evaluate-muse --on run --data muse-bench/MUSE-News --retrain_log retrained.json"
LABELS = {
    "verbmem_f": "C1 verbatim memorisation (verbmem_f)",
    "knowmem_f": "C2 knowledge memorisation (knowmem_f)",
    "privleak": "C3 privacy leakage (privleak)",
    "knowmem_r": "C4 utility (knowmem_r)",
}


@dataclass
class MuseConfig(ReportedConfig):
    """What is evaluated on what."""

    data: str = field(default="", metadata={"help": "muse-bench/MUSE-News, -Books, or such a folder. Required."})
    retrain_log: str | None = field(
        default=None,
        metadata={"help": "Log of this command of a model trained without the forget set, for privacy leakage."},
    )
    ds_size: int | None = field(default=300, metadata={"help": "First rows of each set; MUSE's have 100."})
    eval_batch_size: int = field(default=8, metadata={"help": "Texts of a pass; some have thousands of tokens."})

    def problems(self, model: ModelConfig) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        sizes = {name: getattr(self, name) for name in ("ds_size", "eval_batch_size")}
        return [
            *super().problems(model),
            *([] if self.data else [required("data", self.data)]),
            *(
                Problem(name, value, "nothing would be evaluated", "use at least 1")
                for name, value in sizes.items()
                if value is not None and value < 1
            ),
        ]


SETTINGS = (ModelConfig, MuseConfig)


def run(argv: list[str]) -> Answer:
    """Evaluates, writes metrics, scores and texts, and shows the metrics."""
    from unlora.distributed import on_main
    from unlora.evals.muse import evaluate_muse, load_muse, read_muse_scores, summarise_muse, text_count
    from unlora.files import write_json
    from unlora.hashes import sets_sha256
    from unlora.progress import shown

    model_config, config = parse(SETTINGS, argv, "evaluate-muse", EXAMPLE)
    config.log_in_run(model_config, SCORES["unlearned"])
    raise_if([*model_config.problems(), *config.problems(model_config)])
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
