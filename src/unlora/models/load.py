"""Loading a model and its tokenizer: safetensors only, no remote code unless asked."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from unlora.common.distributed import on_cpu
from unlora.common.errors import InputError, Problem
from unlora.data import padding_id
from unlora.models.forward import decoder_layers
from unlora.models.sharding import hold_zero3, shard_fsdp, zero3_reading, zero3_settings
from unlora.settings import ModelConfig
from unlora.settings.sharding import FSDP


def load_model(config: ModelConfig) -> tuple[Any, Any]:
    """The causal language model, on this process's device, and its tokenizer.

    Raises:
        InputError: nothing that transformers can load there, weights that are not safetensors, or a tokenizer with
            neither pad nor eos token.
    """
    from transformers import AutoModelForCausalLM

    common = source_settings(config)
    tokenizer = load_tokenizer(config.model_name_or_path, common)
    try:
        zero3 = zero3_of(config)
        with zero3_reading(zero3) if zero3 else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(
                config.model_name_or_path,
                dtype=config.dtype,
                attn_implementation=config.attn_implementation,
                use_safetensors=True,
                **quantisation(config),
                **common,
            )
    except (OSError, ValueError) as error:
        raise _cannot_load(config.model_name_or_path, error) from error
    for module in model.modules():
        # On some CPUs a 4-bit layer is stored anew for inference once it has run without gradients: later gradients are
        # lost in silence, and the weight too.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if zero3:
        hold_zero3(model, zero3)
    elif config.shard_base:
        shard_fsdp(model, decoder_layers(model)[2], process_device())
    else:
        model = to_device(model)
    return model, tokenizer


def source_settings(config: ModelConfig) -> dict[str, Any]:
    """What model and tokenizer are loaded with beside their name."""
    return {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}


def quantisation(config: ModelConfig) -> dict[str, Any]:
    """What `from_pretrained` is told of a quantised base: bitsandbytes' settings, and this process's device."""
    if config.quantised is None:
        return {}
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=weights_dtype(config),
    )
    return {"quantization_config": settings, "device_map": {"": process_device()}}


def zero3_of(config: ModelConfig) -> dict[str, Any] | None:
    """DeepSpeed's settings, where it is to spread the base."""
    if config.shard_base in (None, FSDP):
        return None
    process_device()  # joins this process to the others
    return zero3_settings(str(config.shard_base), str(weights_dtype(config)).removeprefix("torch."))


def weights_dtype(config: ModelConfig) -> Any:
    """The type that the weights are loaded in, without loading them."""
    from transformers import AutoConfig

    if config.dtype != "auto":
        return config.dtype
    return AutoConfig.from_pretrained(config.model_name_or_path, **source_settings(config)).dtype


def process_device() -> torch.device:
    """This process's device."""
    from accelerate import PartialState

    device: torch.device = PartialState(cpu=on_cpu()).device
    return device


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
    return model if getattr(model, "is_quantized", False) else model.to(process_device())
