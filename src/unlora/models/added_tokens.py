"""Load adapters whose base model had tokens added before training: the adapter's files contain their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from unlora.common.errors import InputError, Problem
from unlora.models.hashes import ADAPTER_WEIGHTS


def resize_embeddings(model: PreTrainedModel, adapter: Path, argument: str) -> None:
    """Resize the embeddings of the model to the size that the adapter was trained with.

    The new rows are random until the adapter is loaded, which replaces them.

    Args:
        model: the base model of the adapter. It is changed in place.
        adapter: the folder of the adapter.
        argument: the argument that names the adapter, for error messages.

    Raises:
        InputError: the adapter lacks weights of the added tokens, which would remain random.
    """
    layers = _embedding_layers(model)
    saved, alone = _saved_rows(adapter, layers), _individual_tokens(adapter, layers)
    present = model.get_input_embeddings().weight.shape[0]
    rows = max([*saved.values(), *(index + 1 for indices in alone.values() for index in indices)], default=present)
    if rows == present or (rows < present and not saved):
        return
    added = set(range(present, rows))
    lacking = [name for name in layers if saved.get(name, 0) < rows and not added <= alone.get(name, set())]
    tied = len({id(layer.weight) for layer in layers.values()}) == 1
    if added and lacking and not (tied and len(lacking) < len(layers)):
        reason = f"it was trained with {len(added)} added tokens, and has no weights of {', '.join(lacking)} for them"
        fix = "save it again with model.save_pretrained(FOLDER, save_embedding_layers=True)"
        raise InputError(Problem(argument, str(adapter), reason, fix))
    model.resize_token_embeddings(rows, mean_resizing=False)


def _embedding_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Return the input embeddings and the output head by name."""
    ends = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    return {name: module for name, module in model.named_modules() if any(module is end for end in ends)}


def _saved_rows(adapter: Path, layers: dict[str, nn.Module]) -> dict[str, int]:
    """Return the number of tokens in each embedding layer that the adapter's file contains as a whole."""
    found = {}
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118 - not a mapping
            for name in layers:
                own = key.startswith(f"base_model.model.{name}.") and key.endswith(".weight")
                if own and "lora_" not in key:
                    found[name] = weights.get_slice(key).get_shape()[0]
    return found


def _individual_tokens(adapter: Path, layers: dict[str, nn.Module]) -> dict[str, set[int]]:
    """Return the tokens of each layer that were trained individually (PEFT's `trainable_token_indices`)."""
    setting = getattr(PeftConfig.from_pretrained(adapter), "trainable_token_indices", None) or {}
    by_name = setting if isinstance(setting, dict) else {"embed_tokens": setting}
    return {
        name: {index for short, indices in by_name.items() if f".{name}".endswith(f".{short}") for index in indices}
        for name in layers
    }
