"""The modules of a model without its weights, to check settings against before gigabytes are read."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from unlora.common.errors import Problem
from unlora.models.source import source_of
from unlora.settings import ModelConfig

# Model types whose answers depend on the padding of a batch. Nothing that works on batches can be right for them.
_IGNORE_PADDING = ("rwkv", "xlstm")


def skeleton(config: ModelConfig) -> PreTrainedModel | None:
    """Return the model with weights that have shapes only, or None where this cannot be known without loading it."""
    config = source_of(config).base
    code = {"trust_remote_code": config.trust_remote_code}
    try:
        settings = AutoConfig.from_pretrained(config.model_name_or_path, revision=config.model_revision, **code)
        with torch.device("meta"):
            return auto_class(settings).from_config(settings, **code).eval()
    # Loading the model says what is wrong with it, and some models compute with their weights as they are made.
    except Exception:
        return None


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """Return what loads the model whole. A vision-language model stays one: only its text part is used and adapted."""
    composite = config.get_text_config() is not config
    if composite and type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def family_problems(model: nn.Module) -> list[Problem]:
    """Return why no model of this type can be used, if so."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _IGNORE_PADDING:
        return []
    reason = f"models of type {kind} ignore the attention mask, so their answers would depend on the batch"
    return [Problem("model_name_or_path", type(model).__name__, reason, "use a model of another type")]
