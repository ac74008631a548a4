"""Build the modules of a model without its weights, to check settings before gigabytes are read."""

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

# Model types whose outputs depend on the padding of a batch, so that batched results would be wrong.
_IGNORE_PADDING = ("rwkv", "xlstm")


def skeleton(config: ModelConfig) -> PreTrainedModel | None:
    """Return the model on the meta device, or None if it cannot be built without loading its weights."""
    config = source_of(config).base
    code = {"trust_remote_code": config.trust_remote_code}
    try:
        settings = AutoConfig.from_pretrained(config.model_name_or_path, revision=config.model_revision, **code)
        with torch.device("meta"):
            return auto_class(settings).from_config(settings, **code).eval()
    # Errors are reported when the model is loaded. Some models cannot be built on the meta device, because their
    # constructors compute with weights.
    except Exception:
        return None


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """Return the auto class for the whole model. Of a vision-language model, only the text part is used and adapted."""
    composite = config.get_text_config() is not config
    if composite and type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def family_problems(model: nn.Module) -> list[Problem]:
    """Return a problem if models of this type are not supported."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _IGNORE_PADDING:
        return []
    reason = f"models of type {kind} ignore the attention mask, so their answers would depend on the batch"
    return [Problem("model_name_or_path", type(model).__name__, reason, "use a model of another type")]
