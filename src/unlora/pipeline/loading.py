"""The model that a request starts from: the base, with the adapter of an earlier run where it continues from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlora.models.load import load_adapter, load_model
from unlora.runs.folder import ADAPTER
from unlora.runs.record import check_base
from unlora.settings import ModelConfig, TargetConfig


def load_start(config: ModelConfig) -> tuple[Any, Any]:
    """The model and its tokenizer; with `config.on`, a `PeftModel` that carries that run's adapter as "earlier".

    Raises:
        InputError: as `load_model`, or an adapter that does not fit or was made for other weights.
    """
    if config.on is None:
        return load_model(config)
    check_base(config.on, config, "model_name_or_path")
    model, tokenizer = load_model(config)
    return load_adapter(model, str(Path(config.on) / ADAPTER), "earlier", argument="on"), tokenizer


def load_target(config: ModelConfig, target: TargetConfig) -> tuple[Any, Any]:
    """The model to evaluate, with its adapter if there is one, and its tokenizer."""
    model, tokenizer = load_start(config)
    return (load_adapter(model, target.adapter) if target.adapter else model), tokenizer
