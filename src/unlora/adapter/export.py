"""Export: both adapters as one standard PEFT adapter of rank 2r for the original base."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlora.adapter.offset import OFFSET, UNLEARN
from unlora.errors import InputError, Problem
from unlora.files import atomic_path

WEIGHTS = "adapter_model.safetensors"


def export_adapter(model: PeftModel, path: str | Path) -> Path:
    """Writes a plain PEFT folder that turns the original base into the unlearned model.

    A' = [A; A0] and B' = [B, −B0] have rank 2r, and alpha' is chosen so that the scaling stays what it was (with
    rank-stabilised LoRA too). The folder loads with `PeftModel.from_pretrained(base, path)` without unlora.

    Args:
        model: from `attach_adapters`.
        path: a folder that does not exist yet or is empty.

    Returns:
        The folder.

    Raises:
        InputError: the folder is in use, or the model has not both adapters.
    """
    folder = Path(path)
    check_unused(folder, "path")
    if not isinstance(model, PeftModel) or {UNLEARN, OFFSET} - set(model.peft_config):
        reason = f"it has not both adapters {UNLEARN!r} and {OFFSET!r}"
        raise InputError(Problem("model", type(model).__name__, reason, "give the model that attach_adapters returned"))
    with atomic_path(folder) as partial:
        write_adapter(model, partial)
        if folder.exists():
            folder.rmdir()  # empty, as checked: a rename does not replace it on every system
    return folder


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the exported adapter's files into `folder`, whatever else is there."""
    folder.mkdir(exist_ok=True)
    with atomic_path(folder / WEIGHTS) as partial:
        save_file(merged_state(model), partial, metadata={"format": "pt"})
    merged_config(model).save_pretrained(folder)


@torch.no_grad()
def read_adapter(model: PeftModel, folder: Path) -> None:
    """Sets both adapters of `model` to what `write_adapter` wrote: the two halves of each factor.

    Raises:
        InputError: no such file, a corrupt one, or one written for other layers or another rank.
    """
    file = folder / WEIGHTS
    fix = "name a checkpoint of this run, or start anew"
    if not file.is_file():
        raise InputError(Problem("resume_from_checkpoint", str(folder), f"it has no {WEIGHTS}", fix))
    try:
        saved = load_file(file)
    except SafetensorError as error:
        raise InputError(
            Problem("resume_from_checkpoint", str(folder), f"{WEIGHTS} is broken ({error})", fix)
        ) from error
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in merged_state(model).items()}:
        raise InputError(Problem("resume_from_checkpoint", str(folder), "it is of another model or rank", fix))
    parameters = dict(model.named_parameters())
    for name, tensor in saved.items():
        stem, dim = name.removesuffix(".weight"), 0 if ".lora_A." in name else 1
        for adapter, half in zip((UNLEARN, OFFSET), tensor.chunk(2, dim=dim), strict=True):
            parameters[f"{stem}.{adapter}.weight"].copy_(half)


def check_unused(folder: Path, argument: str) -> None:
    """Raises `InputError` if there is anything at `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(Problem(argument, str(folder), "it is already in use", "name a new folder or empty this one"))


def merged_state(model: PeftModel) -> dict[str, Tensor]:
    """The rank-2r factors under PEFT's file names."""
    # "auto" would ask the hub about the base, and add its embeddings if it has been resized.
    trained, offset = (
        get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False) for name in (UNLEARN, OFFSET)
    )
    return {
        name: torch.cat([tensor, offset[name]], dim=0 if ".lora_A." in name else 1).detach().cpu().contiguous()
        for name, tensor in trained.items()
    }


def merged_config(model: PeftModel) -> LoraConfig:
    """LoRA settings under which the rank-2r factors act as the two adapters did."""
    ours: LoraConfig = model.peft_config[UNLEARN]
    scaling = ours.lora_alpha / (ours.r**0.5 if ours.use_rslora else ours.r)
    return LoraConfig(
        r=2 * ours.r,
        lora_alpha=scaling * 2 * ours.r,
        lora_dropout=0.0,
        target_modules=ours.target_modules,
        fan_in_fan_out=ours.fan_in_fan_out,
        base_model_name_or_path=ours.base_model_name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
