"""Load a model and its tokenizer, with strict checks: safetensors only, and no remote code by default."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from unlora.common.distributed import on_cpu
from unlora.common.errors import InputError, Problem, raise_if
from unlora.data import padding_id
from unlora.models.adapter_files import adapter_folder, check_whole
from unlora.models.added_tokens import resize_embeddings
from unlora.models.forward import decoder_layers
from unlora.models.sharding import hold_zero3, shard_fsdp, zero3_reading, zero3_settings
from unlora.models.skeleton import auto_class, family_problems
from unlora.models.source import opened
from unlora.settings import ModelConfig
from unlora.settings.sharding import FSDP

logger = logging.getLogger(__name__)
# Name of the initial adapter on a model, if the user named an adapter as the model.
START = "start"
# Errors that `from_pretrained` raises for files, settings and packages that it cannot use.
_ERRORS = (
    *(OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError, TypeError),
    *(SafetensorError, StrictDataclassError),
)
_ARGUMENT = "model_name_or_path"
_SHOWN = 3
_CORRECT = "correct its generation_config.json, or remove this file"


def load_model(config: ModelConfig) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    """Load the causal language model onto this process's device, and its tokenizer.

    If the settings name an adapter, its base model is loaded with the adapter under the name `START`.

    Raises:
        InputError: transformers cannot load it, its weights are not exactly those that its configuration describes, or
            its tokenizer has neither a pad nor an eos token.
    """
    with opened(config) as source:
        read_config(source.base)
        tokenizer = load_tokenizer(source.base)  # before the weights, to fail early
        model = _load_base(source.base)
    if source.adapter is not None:
        resize_embeddings(model, source.adapter, _ARGUMENT)
        model = load_adapter(model, str(source.adapter), START, argument=_ARGUMENT)
    return model, tokenizer


def _load_base(config: ModelConfig) -> PreTrainedModel:
    kind = auto_class(read_config(config))
    _check_generation_settings(config)
    zero3 = _zero3_settings_of(config)
    try:
        with _without_load_report(), zero3_reading(zero3) if zero3 else nullcontext():
            model, info = kind.from_pretrained(
                config.model_name_or_path,
                dtype=config.dtype,
                attn_implementation=config.attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `_weight_problems` refuses them with their names
                **_quantisation_of(config),
                **_source_of(config),
            )
    except _ERRORS as error:
        raise _cannot_load(config, error) from error
    raise_if(family_problems(model))
    raise_if(_weight_problems(config.model_name_or_path, info))
    _repair_generation_settings(model, config)
    for module in model.modules():
        # On some CPUs, bitsandbytes repacks a 4-bit layer for inference once it has run without gradients. After that,
        # gradients and the original weight are silently lost.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if zero3:
        hold_zero3(model, zero3)
    elif config.shard_base:
        shard_fsdp(model, decoder_layers(model)[2], _process_device())
    elif not getattr(model, "is_quantized", False):  # quantised models are already on their device
        model = model.to(_process_device())
    return model


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model, and check that it has a token to pad with.

    Raises:
        InputError: transformers cannot load it, or it has neither a pad nor an eos token.
    """
    with opened(config) as source:
        tokenizer = _read_tokenizer(source.base)
        padding_id(tokenizer)
        _ensure_pad_embedding(tokenizer, _embeddings(source.base))
    return tokenizer


def _read_tokenizer(base: ModelConfig) -> PreTrainedTokenizerFast:
    name = base.tokenizer_name_or_path or base.model_name_or_path
    source = _source_of(base) if base.tokenizer_name_or_path is None else {"trust_remote_code": base.trust_remote_code}
    try:
        return AutoTokenizer.from_pretrained(name, **source)
    except Exception as error:  # the tokenizers library raises plain exceptions for broken files
        argument = _ARGUMENT if base.tokenizer_name_or_path is None else "tokenizer_name_or_path"
        reason = f"it has no tokenizer that transformers can load ({_first_line(error)})"
        fix = "name the folder or the model on the Hub that has it with --tokenizer_name_or_path"
        raise InputError(Problem(argument, name, reason, fix)) from error


def _embeddings(config: ModelConfig) -> int | None:
    """Return the vocabulary size in the saved configuration, which is read without running the model's own code."""
    try:
        found, _ = PreTrainedConfig.get_config_dict(config.model_name_or_path, revision=config.model_revision)
        size = (found.get("text_config") or found).get("vocab_size")
    except _ERRORS as error:
        raise _cannot_load(config, error) from error
    return size if isinstance(size, int) else None


def _ensure_pad_embedding(tokenizer: PreTrainedTokenizerFast, embeddings: int | None) -> None:
    """Pad with EOS if the pad token has no embedding: padding is masked, but its embeddings are still looked up."""
    if embeddings is None or tokenizer.pad_token_id is None or tokenizer.pad_token_id < embeddings:
        return
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= embeddings:
        reason = f"the model has {embeddings} embeddings, so it has none for the pad token {tokenizer.pad_token!r}"
        raise InputError(Problem("tokenizer", type(tokenizer).__name__, reason, "set tokenizer.eos_token"))
    tokenizer.pad_token = tokenizer.eos_token


def load_adapter(
    model: PreTrainedModel | PeftModel, path: str, name: str = "default", *, argument: str = "adapter"
) -> PeftModel:
    """Load a frozen PEFT adapter from a folder or the Hub onto the model, from safetensors only.

    Args:
        model: the model that the adapter was made for. Adapters that are already on it stay, but are deactivated.
        path: the adapter's folder, or its name on the Hub.
        name: the adapter's name on the model.
        argument: the argument that names the adapter, for error messages.

    Raises:
        InputError: it is a pickle, PEFT cannot load it on this model, or it has missing or unexpected tensors.
    """
    folder = adapter_folder(path, argument)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # `check_whole` raises an error for them
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name)
                adapted = model
            else:
                adapted = PeftModel.from_pretrained(model, str(folder), name)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError, SafetensorError) as error:
        reason = f"PEFT cannot load it on this model ({type(error).__name__}: {error})"
        fix = "give the folder of an adapter made for this model; with added tokens, name it as the model itself"
        raise InputError(Problem(argument, path, reason, fix)) from error
    check_whole(adapted, folder, path, name, argument)
    if len(adapted.peft_config) > 1:
        adapted.base_model.set_adapter([name], inference_mode=True)
    return adapted


def read_config(config: ModelConfig) -> PreTrainedConfig:
    """Return the configuration of the model, or of its base if an adapter is named. Check that it can be loaded."""
    with opened(config) as source:
        return _read_base_config(source.base)


def _read_base_config(config: ModelConfig) -> PreTrainedConfig:
    try:
        found = AutoConfig.from_pretrained(config.model_name_or_path, **_source_of(config))
    except _ERRORS as error:
        raise _cannot_load(config, error) from error
    method = (getattr(found, "quantization_config", None) or {}).get("quant_method")
    if method is not None and method not in AUTO_QUANTIZER_MAPPING:
        reason = f"its weights are quantised as {method!r}, which this version of transformers does not know"
        fix = "update transformers, or use the model without quantisation"
        raise InputError(Problem(_ARGUMENT, config.model_name_or_path, reason, fix))
    return found


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Hide transformers' report of wrong weights, which calls them harmless. `_weight_problems` refuses them."""

    def others(record: logging.LogRecord) -> bool:
        return not re.search(r" LOAD REPORT|^This checkpoint seem corrupted", record.getMessage())

    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(others)
    try:
        yield
    finally:
        source.removeFilter(others)


def _weight_problems(name: str, info: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield problems that transformers only reports: weights that are missing, unexpected or of another shape."""
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    for key, saved, wanted in sorted(info.get("mismatched_keys") or ()):
        reason = f"{key} has the shape {list(saved)} in the weights, and {list(wanted)} in config.json"
        yield Problem(_ARGUMENT, name, reason, "use the config.json that was saved with the weights")
    if missing:
        fix = "use the config.json that was saved with the weights, or save the model again"
        if wrapper := _wrapper(missing, unexpected):
            fix = f"save the model again without its wrapper, whose name {wrapper!r} is a prefix of every weight"
        yield Problem(_ARGUMENT, name, f"the weights lack {_some(missing)}, which would be random", fix)
    elif unexpected:
        reason = f"the weights contain {_some(unexpected)}, which this model does not have and would ignore"
        yield Problem(_ARGUMENT, name, reason, "correct config.json, or save the model without them")


def _wrapper(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """Return the common prefix of all weight names if the model was saved inside another module, else None."""
    fits = {one.removesuffix(name) for one in unexpected for name in missing if one.endswith(f".{name}")}
    return next((prefix for prefix in sorted(fits) if all(name.startswith(prefix) for name in unexpected)), None)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _check_generation_settings(config: ModelConfig) -> None:
    """Raise `InputError` for generation settings that transformers cannot read."""
    name = config.model_name_or_path
    try:
        found = GenerationConfig.from_pretrained(name, revision=config.model_revision)
    except OSError:
        return  # there is no such file, and transformers uses its defaults
    except ValueError as error:
        raise _contradictory(config, str(error)) from error
    except (TypeError, AttributeError, LookupError) as error:
        reason = f"its generation_config.json is not one of transformers ({_first_line(error)})"
        raise InputError(Problem(_ARGUMENT, name, reason, _CORRECT)) from error
    tokens = {key: getattr(found, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    raise_if(
        Problem(_ARGUMENT, name, f"{key} in its generation_config.json is {value!r}, not the id of a token", _CORRECT)
        for key, value in tokens.items()
        if not _are_token_ids(value)
    )


def _are_token_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(one, int) and not isinstance(one, bool) for one in ids)


def _contradictory(config: ModelConfig, reason: str) -> InputError:
    reason = f"its generation settings contradict each other ({' '.join(reason.split())})"
    return InputError(Problem(_ARGUMENT, config.model_name_or_path, reason, _CORRECT))


def _repair_generation_settings(model: PreTrainedModel, config: ModelConfig) -> None:
    """Enable sampling if the generation settings only make sense with it, such as a temperature.

    transformers would refuse to save a model with such settings.

    Raises:
        InputError: the settings contradict each other in another way.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or not _contradiction(settings):
        return
    settings.do_sample = True
    if reason := _contradiction(settings):
        raise _contradictory(config, reason)
    logger.warning("the model's generation settings only make sense with do_sample=true, so it is set")


def _contradiction(settings: Any) -> str | None:
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None


def _source_of(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}


def _quantisation_of(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantise the base model on loading, if it is to be quantised."""
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
    _process_device()  # initialises the process group, which DeepSpeed requires
    return zero3_settings(str(config.shard_base), str(_weights_dtype(config)).removeprefix("torch."))


def _weights_dtype(config: ModelConfig) -> torch.dtype | str:
    """Return the dtype that the weights will have, without loading them."""
    return config.dtype if config.dtype != "auto" else read_config(config).dtype


def _process_device() -> torch.device:
    device: torch.device = PartialState(cpu=on_cpu()).device
    return device


def _first_line(error: Exception) -> str:
    if isinstance(error, StrictDataclassFieldValidationError):  # its second line says what is wrong
        return " ".join(str(error).split())
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cannot_load(config: ModelConfig, error: Exception) -> InputError:
    """Turn an error of `from_pretrained` into an `InputError` with a fix."""
    text, name = _first_line(error), config.model_name_or_path
    if "trust_remote_code" in str(error):
        fix = "read that code, then allow it with --trust_remote_code true"
        return InputError(
            Problem("trust_remote_code", config.trust_remote_code, "the model comes with its own code", fix)
        )
    if re.search(r"attn_implementation|Attention|`kernels`", text):
        fix = "install what it needs, or use --attn_implementation sdpa"
        return InputError(
            Problem("attn_implementation", config.attn_implementation, f"it cannot be used ({text})", fix)
        )
    if isinstance(error, ImportError):
        fix = "install that, or use the model in another format"
        return InputError(Problem(_ARGUMENT, name, f"it needs a package that is not installed ({text})", fix))
    reason = f"transformers cannot load it with safetensors weights ({text})"
    return InputError(Problem(_ARGUMENT, name, reason, "give a model folder or a model's name on the Hub"))
