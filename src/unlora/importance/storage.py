"""Importance files: safetensors with a key that identifies the model, the data and the settings of the measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unlora.common.errors import InputError, Problem
from unlora.common.files import atomic_path
from unlora.data import Example
from unlora.models.hashes import weights_digest

_FORMAT = "unlora-importance-1"


def importance_key(model: nn.Module, datasets: Iterable[Sequence[Example]], settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the model's weights, the tokenised datasets and the settings of the importance."""
    digest = weights_digest(sorted(model.state_dict().items()))
    digest.update(json.dumps([list(datasets), dict(settings)], sort_keys=True).encode())
    return str(digest.hexdigest())


def save_importance(importance: Mapping[str, Tensor], path: str | Path, key: str, settings: Mapping[str, Any]) -> None:
    """Write {module name: [out] or [out, in] importance} atomically."""
    metadata = {"format": _FORMAT, "key": key, "settings": json.dumps(dict(settings), sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in importance.items()}
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def load_importance(path: str | Path, key: str) -> dict[str, Tensor]:
    """Load a file that `save_importance` wrote.

    Raises:
        InputError: the file is missing, corrupt, not an importance, or made for another model, data or settings.
    """
    fix = "delete it so that it is computed again, or name another file"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(
            Problem("importance_file", str(path), f"cannot be read as safetensors ({error})", fix)
        ) from error
    if metadata.get("format") != _FORMAT:
        raise InputError(Problem("importance_file", str(path), "it does not hold an importance that unlora wrote", fix))
    if metadata.get("key") != key:
        reason = f"it was made for another model, data or settings (its settings: {metadata.get('settings')})"
        raise InputError(Problem("importance_file", str(path), reason, fix))
    if odd := [
        name for name, tensor in tensors.items() if not torch.isfinite(tensor).all() or tensor.dim() not in (1, 2)
    ]:
        raise InputError(
            Problem("importance_file", str(path), f"the importance of {odd[0]} is not one number per row", fix)
        )
    return tensors
