"""Export: all active adapters as one standard PEFT adapter for the original base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlora.adapter.compress import Compression, compress, total
from unlora.adapter.offset import lora_layers
from unlora.adapter.settings import OFFSET, UNLEARN, base_modules
from unlora.common.errors import InputError, Problem
from unlora.common.files import atomic_path
from unlora.common.progress import bar
from unlora.models.hashes import ADAPTER_WEIGHTS


class Factors(NamedTuple):
    """One module's part of the exported adapter, ΔW = scaling·B·A: a [rank, in], b [out, rank]."""

    a: Tensor
    b: Tensor
    scaling: float


def export_adapter(model: PeftModel, path: str | Path, max_rank: int | None = None) -> Path:
    """Writes a plain PEFT folder that turns the original base into the unlearned model.

    A' = [A; A0; A1; ...] and B' = [B, −B0, B1, ...] hold this request's adapters and the earlier ones that are active
    (2r ranks, or r without an offset, and those of the earlier ones); alpha' is chosen so that the scaling of "unlearn"
    stays what it was, and the others' relative scalings are in B'. Modules of other ranks are named in `rank_pattern`
    and `alpha_pattern`. The folder loads with `PeftModel.from_pretrained(base, path)` without unlora.

    Args:
        model: from `attach_adapters`.
        path: a folder that does not exist yet or is empty.
        max_rank: at most so many ranks per module, by the truncated SVD of the change of its weight; `compression`
            tells what that costs. The exact adapter if not given.

    Returns:
        The folder.

    Raises:
        InputError: the folder is in use, the model has no "unlearn" adapter, or `max_rank` is below 1.
    """
    folder = Path(path)
    check_unused(folder, "path")
    check_attached(model)
    factors = joined_factors(model) if max_rank is None else _compressed(model, max_rank)[0]
    with atomic_path(folder) as partial:
        _write(model, factors, partial)
        if folder.exists():
            folder.rmdir()  # empty, as checked: a rename does not replace it on every system
    return folder


def compression(model: PeftModel, max_rank: int) -> Compression:
    """What `export_adapter` with this `max_rank` costs."""
    check_attached(model)
    return _compressed(model, max_rank)[1]


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the exact exported adapter's files into `folder`, whatever else is there."""
    _write(model, joined_factors(model), folder)


@torch.no_grad()
def read_adapter(model: PeftModel, folder: Path) -> None:
    """Sets "unlearn" and "offset" of `model` to what `write_adapter` wrote: their slices of each factor.

    Raises:
        InputError: no such file, a corrupt one, or one written for other layers, another rank or on top of other
            earlier adapters than the model has.
    """
    file = folder / ADAPTER_WEIGHTS
    fix = "name a checkpoint of this run, or start anew"
    if not file.is_file():
        raise InputError(Problem("resume_from_checkpoint", str(folder), f"it has no {ADAPTER_WEIGHTS}", fix))
    try:
        saved = load_file(file)
    except SafetensorError as error:
        raise InputError(
            Problem("resume_from_checkpoint", str(folder), f"{ADAPTER_WEIGHTS} is broken ({error})", fix)
        ) from error
    present = _state(joined_factors(model))
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in present.items()}:
        raise InputError(Problem("resume_from_checkpoint", str(folder), "it is of another model or rank", fix))
    for name, layer in lora_layers(model):
        ours = [adapter for adapter in (UNLEARN, OFFSET) if adapter in layer.lora_A]
        width = sum(layer.r[adapter] for adapter in ours)
        for factor, key in zip((layer.lora_A, layer.lora_B), _keys(name), strict=True):
            # Both as [rank, features]: B stands on its side.
            now, then = (state[key] if factor is layer.lora_A else state[key].T for state in (present, saved))
            if not torch.equal(now[width:], then[width:]):
                reason = "it was made on top of other earlier adapters"
                raise InputError(Problem("resume_from_checkpoint", str(folder), reason, fix))
            for adapter, part in zip(ours, then[:width].split([layer.r[a] for a in ours]), strict=True):
                factor[adapter].weight.copy_(part if factor is layer.lora_A else part.T)


def check_unused(folder: Path, argument: str) -> None:
    """Raises `InputError` if there is anything at `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(Problem(argument, str(folder), "it is already in use", "name a new folder or empty this one"))


def check_attached(model: Any) -> None:
    """Raises `InputError` if the model has no adapter of ours."""
    if not isinstance(model, PeftModel) or UNLEARN not in model.peft_config:
        reason = f"it has no adapter {UNLEARN!r}"
        raise InputError(Problem("model", type(model).__name__, reason, "give the model that attach_adapters returned"))


@torch.no_grad()
def joined_factors(model: PeftModel) -> dict[str, Factors]:
    """By module: the factors of all active adapters one after the other, "unlearn" and "offset" first."""
    ours: LoraConfig = model.peft_config[UNLEARN]
    usual = ours.lora_alpha / (ours.r**0.5 if ours.use_rslora else ours.r)
    joined = {}
    for name, layer in lora_layers(model):
        adapters = [adapter for adapter in model.active_adapters if adapter in layer.lora_A]
        if adapters:
            joined[name] = _join(layer, adapters, layer.scaling.get(UNLEARN, usual))
    return joined


def _join(layer: LoraLayer, adapters: list[str], scaling: float) -> Factors:
    a = torch.cat([layer.lora_A[name].weight for name in adapters])
    b = torch.cat([layer.lora_B[name].weight * (layer.scaling[name] / scaling) for name in adapters], dim=1)
    return Factors(a, b, scaling)


def _compressed(model: PeftModel, max_rank: int) -> tuple[dict[str, Factors], Compression]:
    if max_rank < 1:
        raise InputError(Problem("max_rank", max_rank, "an adapter has at least rank 1", "use a positive rank"))
    joined = joined_factors(model)
    layers = bar(joined.items(), desc="fewer ranks", unit=" layers")
    parts = {name: compress(module.a, module.b, max_rank) for name, module in layers}
    cost = total((part, joined[name].scaling) for name, part in parts.items())
    return {name: Factors(part.a, part.b, joined[name].scaling) for name, part in parts.items()}, cost


def _write(model: PeftModel, factors: dict[str, Factors], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with atomic_path(folder / ADAPTER_WEIGHTS) as partial:
        save_file(_state(factors), partial, metadata={"format": "pt"})
    joined_config(model, factors).save_pretrained(folder)


def _state(factors: dict[str, Factors]) -> dict[str, Tensor]:
    """The factors under PEFT's file names."""
    return {
        key: tensor.cpu().contiguous()
        for name, module in factors.items()
        for key, tensor in zip(_keys(name), (module.a, module.b), strict=True)
    }


def _keys(name: str) -> tuple[str, str]:
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def joined_config(model: PeftModel, factors: dict[str, Factors]) -> LoraConfig:
    """LoRA settings under which the factors act as all adapters did.

    The largest rank is the adapter's own; each other module is a pattern that matches its whole name only.
    """
    ours: LoraConfig = model.peft_config[UNLEARN]
    ranks = {name: len(module.a) for name, module in factors.items()}
    alphas = {name: module.scaling * ranks[name] for name, module in factors.items()}
    rank, alpha = max((ranks[name], alphas[name]) for name in factors)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=_target_modules(model, set(factors)),
        rank_pattern={_exactly(name): value for name, value in ranks.items() if value != rank},
        alpha_pattern={_exactly(name): value for name, value in alphas.items() if value != alpha},
        fan_in_fan_out=ours.fan_in_fan_out,
        base_model_name_or_path=ours.base_model_name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}"  # PEFT adds the $


def _target_modules(model: PeftModel, names: set[str]) -> list[str]:
    """Last parts of the names (`q_proj`) where these match no other module, else the whole names."""
    last = {name.rpartition(".")[2] for name in names}
    matched = {name for name in base_modules(model) if name.rpartition(".")[2] in last}
    return sorted(last if matched == names else names)
