"""Load a model and its tokenizer: from safetensors only, and without remote code unless the user allows it."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from unlora.common.distributed import on_cpu
from unlora.common.errors import InputError, Problem, raise_if
from unlora.data import padding_id
from unlora.models.adapter_files import adapter_folder, check_whole
from unlora.models.forward import decoder_layers
from unlora.models.sharding import hold_zero3, shard_fsdp, zero3_reading, zero3_settings
from unlora.models.skeleton import family_problems
from unlora.settings import ModelConfig
from unlora.settings.sharding import FSDP


def load_model(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the causal language model onto this process's device, and its tokenizer.

    Raises:
        InputError: transformers cannot load it, its weights are not safetensors, or its tokenizer has neither a pad nor
            an eos token.
    """
    tokenizer = load_tokenizer(config)  # first, because a wrong tokenizer is found before the weights are read
    try:
        zero3 = _zero3_settings_of(config)
        with zero3_reading(zero3) if zero3 else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(
                config.model_name_or_path,
                dtype=config.dtype,
                attn_implementation=config.attn_implementation,
                use_safetensors=True,
                **_quantisation_of(config),
                **_source_of(config),
            )
    except (OSError, ValueError) as error:
        raise _cannot_load(config, error) from error
    raise_if(family_problems(model))
    for module in model.modules():
        # On some CPUs bitsandbytes repacks a 4-bit layer for inference once it has run without gradients. Later
        # gradients would then be lost silently, and the weight too.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if zero3:
        hold_zero3(model, zero3)
    elif config.shard_base:
        shard_fsdp(model, decoder_layers(model)[2], _process_device())
    elif not getattr(model, "is_quantized", False):  # quantised models are on their device already
        model = model.to(_process_device())
    return model, tokenizer


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model, and check that it has a token to pad with.

    Raises:
        InputError: transformers cannot load it, or it has neither a pad nor an eos token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path, **_source_of(config))
    except (OSError, ValueError) as error:
        raise _cannot_load(config, error) from error
    padding_id(tokenizer)
    return tokenizer


def load_adapter(model: nn.Module, path: str, name: str = "default", *, argument: str = "adapter") -> nn.Module:
    """Load a frozen PEFT adapter from a folder or the Hub onto the model, from safetensors only.

    Args:
        model: the model that the adapter was made for.
        path: the adapter's folder, or its name on the Hub.
        name: the adapter's name on the model.
        argument: what the user calls the adapter, for error messages.

    Raises:
        InputError: PEFT cannot load it on this model, it is a pickle, or it is not a whole adapter and nothing else.
    """
    folder = adapter_folder(path, argument)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # it is an error below
            adapted = PeftModel.from_pretrained(model, str(folder), name)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, SafetensorError) as error:
        reason = f"PEFT cannot load it on this model ({type(error).__name__}: {error})"
        fix = "give the folder of an adapter made for this model"
        raise InputError(Problem(argument, path, reason, fix)) from error
    check_whole(adapted, folder, path, name, argument)
    return adapted


def _source_of(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}


def _quantisation_of(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a base that is quantised as it is loaded, if it is."""
    if config.quantised is None:
        return {}
    settings = BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=_weights_dtype(config),
    )
    return {"quantization_config": settings, "device_map": {"": _process_device()}}


def _zero3_settings_of(config: ModelConfig) -> dict[str, Any] | None:
    """Return DeepSpeed's settings if DeepSpeed shards the base, else None."""
    if config.shard_base in (None, FSDP):
        return None
    _process_device()  # joins this process to the others, which DeepSpeed expects
    return zero3_settings(str(config.shard_base), str(_weights_dtype(config)).removeprefix("torch."))


def _weights_dtype(config: ModelConfig) -> torch.dtype | str:
    """Return the type that the weights will have, without loading them."""
    if config.dtype != "auto":
        return config.dtype
    return AutoConfig.from_pretrained(config.model_name_or_path, **_source_of(config)).dtype


def _process_device() -> torch.device:
    device: torch.device = PartialState(cpu=on_cpu()).device
    return device


def _cannot_load(config: ModelConfig, error: Exception) -> InputError:
    reason = f"transformers cannot load it with safetensors weights ({str(error).splitlines()[0]})"
    fix = "give a model folder or a model's name on the hub"
    if "trust_remote_code" in str(error):
        fix = "add --trust_remote_code true if you trust the code that comes with it"
    return InputError(Problem("model_name_or_path", config.model_name_or_path, reason, fix))
