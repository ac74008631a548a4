"""Store nested Python values with tensors in one safetensors file, for optimiser, scheduler and random states.

torch.save would pickle them, and loading a pickle can run arbitrary code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlora.common.files import atomic_path


def save_state(path: str | Path, value: object) -> None:
    """Write a nested value of dicts, lists, tuples, numbers, strings, None, arrays and tensors.

    Raises:
        TypeError: the value contains anything else.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_pack(value, tensors))
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"skeleton": skeleton})


def load_state(path: str | Path) -> Any:
    """Read a value that `save_state` wrote, with its tensors on the CPU."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return _unpack(json.loads(file.metadata()["skeleton"]), tensors)


def _pack(value: object, tensors: dict[str, Tensor]) -> Any:
    """Convert the value to JSON with each container and tensor as {kind: content}, and add its tensors to `tensors`."""
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(value).detach().cpu().clone().contiguous()
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a value of type {type(value).__name__} cannot be saved in a state file")


def _unpack(value: object, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind in ("tensor", "array"):
        return tensors[content] if kind == "tensor" else tensors[content].numpy()
    if kind == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
