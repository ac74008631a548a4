"""Loading a model and its tokenizer: safetensors only, no remote code unless asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlora.config import ADAPTER, ModelConfig
from unlora.data import padding_id
from unlora.distributed import on_cpu
from unlora.errors import InputError, Problem


def load_model(config: ModelConfig) -> tuple[Any, Any]:
    """The causal language model, on this process's device, and its tokenizer.

    With `config.on` the model is a `PeftModel` that carries that run's adapter as "earlier".

    Raises:
        InputError: nothing that transformers can load there, weights that are not safetensors, a tokenizer with
            neither pad nor eos token, or an adapter that does not fit.
    """
    from transformers import AutoModelForCausalLM

    common = source_settings(config)
    tokenizer = load_tokenizer(config.model_name_or_path, common)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.model_name_or_path,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
            use_safetensors=True,
            **common,
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(config.model_name_or_path, error) from error
    model = to_device(model)
    if config.on is not None:
        model = load_adapter(model, str(Path(config.on) / ADAPTER), "earlier", argument="on")
    return model, tokenizer


def source_settings(config: ModelConfig) -> dict[str, Any]:
    """What model and tokenizer are loaded with beside their name."""
    return {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}


def load_tokenizer(path: str, settings: dict[str, Any] | None = None) -> Any:
    """The tokenizer of a model; one without pad and eos token is refused here, before the weights are read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **(settings or {}))
    except (OSError, ValueError) as error:
        raise _cannot_load(path, error) from error
    padding_id(tokenizer)
    return tokenizer


def load_adapter(model: nn.Module, path: str, name: str = "default", *, argument: str = "adapter") -> nn.Module:
    """The model with a frozen PEFT adapter from a folder or the hub on it; safetensors only."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, path, name, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"PEFT cannot load it on this model ({str(error).splitlines()[0]})"
        raise InputError(
            Problem(argument, path, reason, "give the folder of an adapter made for this model")
        ) from error


def _cannot_load(path: str, error: Exception) -> InputError:
    reason = f"transformers cannot load it with safetensors weights ({str(error).splitlines()[0]})"
    return InputError(Problem("model_name_or_path", path, reason, "give a model folder or a model's name on the hub"))


def to_device(model: nn.Module) -> nn.Module:
    """Moves the model to this process's device; quantised models place themselves."""
    from accelerate import PartialState

    if getattr(model, "is_quantized", False):
        return model
    device: torch.device = PartialState(cpu=on_cpu()).device
    return model.to(device)
