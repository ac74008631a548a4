"""Load the models that commands work on: the start of a request, a model to evaluate, or one to compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unlora.adapter.settings import odd_parts
from unlora.common.errors import InputError, Problem
from unlora.models.load import load_adapter, load_model, load_tokenizer
from unlora.models.source import source_of
from unlora.runs.folder import ADAPTER
from unlora.runs.verify import check_base
from unlora.settings import ModelConfig, TargetConfig


def load_start(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the model and its tokenizer. With `config.on`, it carries that run's adapter under the name "earlier".

    Raises:
        InputError: as for `load_model`, or the adapter does not fit or was made for other weights.
    """
    if config.on is None:
        return load_model(config)
    check_base(config.on, config, "model_name_or_path")
    model, tokenizer = load_model(config)
    # This adapter includes the one that the earlier run may have started with, which is switched off from here on.
    return load_adapter(model, str(Path(config.on) / ADAPTER), "earlier", argument="on"), tokenizer


def start_problems(config: ModelConfig) -> list[Problem]:
    """Return a problem if the model is an adapter that cannot be merged with ours into one exported adapter."""
    folder = source_of(config).adapter
    if folder is None or config.on is not None:
        return []
    odd = odd_parts(folder)
    if not odd:
        return []
    name = config.model_name_or_path
    reason = f"it is not plain LoRA ({', '.join(odd)}), so it cannot be exported as one adapter with ours"
    load = f"AutoPeftModelForCausalLM.from_pretrained({name!r})"
    fix = f"merge it into its base first: {load}.merge_and_unload().save_pretrained(NEW), and its tokenizer beside it"
    return [Problem("model_name_or_path", name, reason, fix)]


def load_target(config: ModelConfig, target: TargetConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the model to evaluate, with its adapter if it has one, and the tokenizer."""
    model, tokenizer = load_start(config)
    return (load_adapter(model, target.adapter) if target.adapter else model), tokenizer


def comparable_model(config: ModelConfig, name: str, argument: str) -> ModelConfig:
    """Return the settings for loading another model in the same way, to compare probabilities with.

    Raises:
        InputError: the other model has another vocabulary, so its probabilities would be those of other tokens.
    """
    other = replace(config, model_name_or_path=name, model_revision="main", on=None)
    try:
        vocabulary = load_tokenizer(other).get_vocab()
    except InputError as error:
        raise InputError(*(replace(problem, argument=argument) for problem in error.problems)) from error
    if load_tokenizer(config).get_vocab() != vocabulary:
        reason = f"it has another vocabulary than {config.model_name_or_path}"
        raise InputError(Problem(argument, name, reason, "name a model with the same tokenizer"))
    return other
