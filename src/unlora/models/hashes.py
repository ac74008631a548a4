"""SHA-256 hashes of rows, weights and adapters, which depend on the content and not on how it is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from unlora.common.progress import bar
from unlora.common.reading import read_json
from unlora.models.sharding import whole

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_WEIGHTS, ADAPTER_SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def rows_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the hash of the rows in their order, each as JSON with sorted keys.

    Keys with the value None are left out, because tables fill missing values with None. A JSONL file and a table with
    the same rows therefore have the same hash.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_canonical(row) + b"\n")
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Return the hash of a file's bytes, as `sha256sum` prints it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sets_sha256(sets: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, str]:
    """Return the `rows_sha256` of each set, by name."""
    return {name: rows_sha256(rows) for name, rows in sets.items()}


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> hashlib._Hash:
    """Return the hash object of name, dtype, shape and bytes of the tensors, which must be sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        tensor = whole(tensor)  # a collective operation if the model is sharded
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest


def base_sha256(name: str, revision: str = "main") -> str | None:
    """Return the hash of a model's saved weights, tensor by tensor.

    It does not depend on how the weights are split into files, nor on the `dtype` in which they are loaded.

    Args:
        name: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub.

    Returns:
        The hash, or None if there are no safetensors of a whole model, for example in the folder of an adapter.

    Raises:
        OSError: there is no such folder, or the Hub cannot be reached.
    """
    files = _weight_files(name, revision)
    return weights_digest(_saved_tensors(files)).hexdigest() if files else None


def _weight_files(name: str, revision: str) -> list[str]:
    """Return the safetensors files of a saved model. They are downloaded if necessary."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    single, index = (
        cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if single is not None:
        return [single]
    return [] if index is None else get_checkpoint_shard_files(name, index, revision=revision)[0]


def _saved_tensors(files: Sequence[str | Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of the files sorted by name, with a progress bar. Only one is loaded at a time."""
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        places = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not a mapping
        for name in bar(sorted(places), desc="hash of the weights", unit=" tensors"):
            yield name, places[name].get_tensor(name)


def adapter_sha256(folder: str | Path) -> str:
    """Return the hash of a PEFT adapter's weights and settings.

    It does not depend on the name of the base model, nor on the order of lists such as the adapted modules.

    Raises:
        OSError: a file is missing.
    """
    digest = weights_digest(_saved_tensors([Path(folder) / ADAPTER_WEIGHTS]))
    settings = read_json(Path(folder) / ADAPTER_SETTINGS)
    # PEFT stores module names in sets, so the order in which it saves them differs between processes.
    unordered = {key: sorted(value, key=str) for key, value in settings.items() if isinstance(value, list)}
    digest.update(_canonical({**settings, **unordered, "base_model_name_or_path": None}))
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    # `default=str` is for dates, which JSON does not have but tables do.
    return json.dumps(_without_none(value), sort_keys=True, ensure_ascii=False, default=str).encode()


def _without_none(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value
