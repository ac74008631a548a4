"""SHA-256 of rows, of a model's weights and of an adapter: the same for the same content, however it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from unlora.common.progress import bar
from unlora.models.sharding import whole

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS, ADAPTER_SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def rows_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of the rows in their order, each as JSON with sorted keys.

    Missing values count as missing keys, since tables fill gaps with None: a jsonl file and the same rows from a
    table have one hash.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row) + b"\n")
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Of a file's bytes, as `sha256sum` has it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def sets_sha256(sets: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, str]:
    """By name the `rows_sha256` of each set."""
    return {name: rows_sha256(rows) for name, rows in sets.items()}


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> Any:
    """The running SHA-256 over name, type, shape and bytes of each tensor; to be given sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        tensor = whole(tensor)  # called by all processes, if it is sharded
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest


def base_sha256(name: str, revision: str = "main") -> str | None:
    """Of a model's saved weights, tensor by tensor: neither their distribution over files nor `dtype` changes it.

    Args:
        name: a folder, or a name on the hub.
        revision: branch, tag or commit on the hub.

    Returns:
        None where there are no safetensors of a whole model, as with an adapter in place of a model.

    Raises:
        OSError: no such folder, or a hub that cannot be reached.
    """
    files = weight_files(name, revision)
    return weights_digest(saved_tensors(files)).hexdigest() if files else None


def weight_files(name: str, revision: str) -> list[str]:
    """The safetensors files of a saved model, downloaded if need be."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    def find(file: str) -> str | None:
        return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)

    single = find(SAFE_WEIGHTS_NAME)
    if single is not None:
        return [single]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for shard in shards if (path := cached_file(name, shard, revision=revision)) is not None]


def saved_tensors(files: Sequence[str | Path]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the files by name, one in memory at a time, with a progress bar."""
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not a mapping
        for name in bar(sorted(places), desc="hash of the weights", unit=" tensors"):
            yield name, places[name].get_tensor(name)


def adapter_sha256(folder: str | Path) -> str:
    """Of a PEFT adapter's weights and settings, but for what its base is called and the order of its modules' names.

    Raises:
        OSError: files that are missing.
    """
    digest = weights_digest(saved_tensors([Path(folder) / ADAPTER_WEIGHTS]))
    settings = json.loads((Path(folder) / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
    # PEFT keeps modules' names in sets, and writes them in an order that differs from process to process.
    unordered = {key: sorted(value, key=str) for key, value in settings.items() if isinstance(value, list)}
    digest.update(_canonical({**settings, **unordered, "base_model_name_or_path": None}))
    return str(digest.hexdigest())


def _canonical(value: Any) -> bytes:
    # Dates have no place in JSON, and tables read some texts as such.
    return json.dumps(_without_gaps(value), sort_keys=True, ensure_ascii=False, default=str).encode()


def _without_gaps(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_gaps(item) for key, item in value.items() if item is not None}
    return [_without_gaps(item) for item in value] if isinstance(value, list | tuple) else value
