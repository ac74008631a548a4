"""The model that a request starts from: the base, with the adapter of the earlier run that it continues from."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unlora.models.load import load_adapter, load_model
from unlora.runs.folder import ADAPTER
from unlora.runs.verify import check_base
from unlora.settings import ModelConfig, TargetConfig


def load_start(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the model and its tokenizer. With `config.on`, it carries that run's adapter under the name "earlier".

    Raises:
        InputError: as `load_model`, or an adapter that does not fit or was made for other weights.
    """
    if config.on is None:
        return load_model(config)
    check_base(config.on, config, "model_name_or_path")
    model, tokenizer = load_model(config)
    return load_adapter(model, str(Path(config.on) / ADAPTER), "earlier", argument="on"), tokenizer


def load_target(config: ModelConfig, target: TargetConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the model to evaluate, with its adapter if it has one, and the tokenizer."""
    model, tokenizer = load_start(config)
    return (load_adapter(model, target.adapter) if target.adapter else model), tokenizer
