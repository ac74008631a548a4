"""Find and check the files of a PEFT adapter from an untrusted source: a complete adapter, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PromptLearningConfig, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from unlora.common.errors import InputError, Problem, from_elsewhere, raise_if
from unlora.common.reading import read_json
from unlora.data.sources import is_hub_id
from unlora.models.hashes import ADAPTER_SETTINGS, ADAPTER_WEIGHTS

ADAPTER_FILES = (ADAPTER_WEIGHTS, ADAPTER_SETTINGS)
_PICKLE = "adapter_model.bin"
_FIX = "name the folder of an adapter that PEFT saved as safetensors"


def adapter_folder(path: str, argument: str) -> Path:
    """Return the folder with an adapter's files. They are downloaded if `path` is a name on the Hub.

    Raises:
        InputError: there is no such adapter, it is a pickle, its settings cannot be read, or its type is not supported.
    """
    folder = Path(path) if Path(path).exists() or not is_hub_id(path) else _downloaded(path, argument)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = (folder / _PICKLE).is_file()
        reason = f"{_PICKLE} is a pickle, which can run code" if pickled else f"it has no {ADAPTER_WEIGHTS}"
        raise InputError(Problem(argument, path, reason, _FIX))
    with from_elsewhere(argument, path, f"its {ADAPTER_SETTINGS} is not one of PEFT", _FIX):
        settings = read_json(folder / ADAPTER_SETTINGS)
        kind = settings["peft_type"]
        if settings.get("alora_invocation_tokens") is not None:  # packing puts several rows into one sequence
            reason = "it only applies after certain tokens (activated LoRA), which is not supported"
            raise InputError(Problem(argument, path, reason, "use an adapter that applies to all tokens"))
        if kind == "XLORA":
            raise InputError(
                Problem(argument, path, "it loads other adapters from any place (X-LoRA)", "use a plain LoRA adapter")
            )
        if issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[kind], PromptLearningConfig):
            reason = f"adapters of type {kind} put virtual tokens before the text, which is not supported"
            raise InputError(Problem(argument, path, reason, "use an adapter that changes weights, such as LoRA"))
    return folder


def _downloaded(name: str, argument: str) -> Path:
    from huggingface_hub import snapshot_download

    with from_elsewhere(argument, name, "it is no folder and cannot be loaded from the Hub", _FIX):
        return Path(snapshot_download(name, allow_patterns=list(ADAPTER_FILES)))


def check_regular(folder: Path, argument: str) -> None:
    """Raise `InputError` unless folder and files of the adapter are real and not links, which may point anywhere."""
    odd = [path for path in (folder, *(folder / name for name in ADAPTER_FILES)) if path.is_symlink()]
    raise_if(Problem(argument, str(path), "it is a symbolic link", "put the file itself there") for path in odd)
    missing = [folder / name for name in ADAPTER_FILES if not (folder / name).is_file()]
    raise_if(Problem(argument, str(path), "there is no such file", _FIX) for path in missing)


def check_whole(model: PeftModel, folder: Path, path: str, name: str, argument: str) -> None:
    """Raise `InputError` unless the file has exactly the tensors of the adapter `name`, all of them finite.

    PEFT leaves a tensor that is missing in the file at its initial value, and skips or misplaces unknown tensors.

    Args:
        model: the model with the adapter loaded from `folder`.
        folder: the folder with the adapter's files.
        path: the adapter as the user gave it.
        name: the adapter's name on the model.
        argument: the argument that names the adapter, for error messages.
    """
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    known = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=True
    )  # with embeddings of added tokens
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            saved = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(Problem(argument, path, f"its {ADAPTER_WEIGHTS} cannot be read ({error})", _FIX)) from error
    infinite = [key for key, tensor in expected.items() if not torch.isfinite(tensor).all()]
    parts = {
        "it lacks tensors": expected.keys() - saved,
        "it has tensors that its settings do not describe": saved - known.keys(),
        "it has tensors with values that are not finite": infinite,
    }
    raise_if(
        Problem(
            argument, path, f"{reason}: {_some(keys)}", "load it on the model that it was made for, or save it again"
        )
        for reason, keys in parts.items()
        if keys
    )


def _some(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first
