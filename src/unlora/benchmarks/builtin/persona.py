"""`persona` as a benchmark: the settings of the quickstart, on people and models of one seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlora.benchmarks.builtin.persona_data import generate
from unlora.common.files import write_jsonl
from unlora.data.sources import Record

# Longer than any answer of the benchmark, so that an answer cut off here is one that did not end.
MAX_NEW_TOKENS = 24
DATA, RETRAINED_LOG = "data", "eval_retrained.json"


def write_sets(folder: Path, seed: int) -> dict[str, Sequence[Record]]:
    """Writes the benchmark as a folder of `<config>.jsonl` and returns the sets to evaluate."""
    configs = generate(seed)
    for name, rows in configs.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return {"forget": configs["forget"], "retain": configs["retain"], "world_facts": configs["facts"]}


def persona_settings(model: Path, folder: Path, seed: int) -> dict[str, Any]:
    """The settings of a request, tuned on seed 3 (docs/results.md): the least training that reached every target there.

    Args:
        model: folder of the original model.
        folder: where the data and the retrained model's log are.
        seed: of the run.
    """
    data = str(folder / DATA)
    return {
        "model_name_or_path": str(model),
        "forget_data": data,
        "forget_name": "forget",
        "retain_data": data,
        "retain_name": "retain",
        "importance_seed": seed,
        "normalised": False,
        "eval_data": data,
        "eval_forget_name": "forget",
        "eval_retain_name": "retain",
        "eval_real_authors_name": "none",
        "eval_world_facts_name": "facts",
        "retrain_log": str(folder / RETRAINED_LOG),
        "max_new_tokens": MAX_NEW_TOKENS,
        "loss": "ihl",
        "learning_rate": 6e-4,
        "retain_weight": 1.0,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 20,
        "warmup_steps": 0.1,
        "logging_steps": 20,
        "save_strategy": "no",
        "seed": seed,
    }
