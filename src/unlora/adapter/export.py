"""Export all active adapters as one standard PEFT adapter for the original base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlora.adapter.compress import Compression, compress, total
from unlora.adapter.offset import lora_layers
from unlora.adapter.settings import OFFSET, UNLEARN
from unlora.adapter.targets import base_modules
from unlora.common.errors import InputError, Problem
from unlora.common.files import atomic_path, check_unused
from unlora.common.progress import bar
from unlora.models.hashes import ADAPTER_WEIGHTS


class _Factors(NamedTuple):
    """The factors of one module in the exported adapter, ΔW = scaling·b·a, with a [rank, in] and b [out, rank]."""

    a: Tensor
    b: Tensor
    scaling: float


def export_adapter(model: PeftModel, path: str | Path, max_rank: int | None = None) -> Path:
    """Write one PEFT adapter that turns the original base into the unlearned model.

    A' = [A; A₀; A₁; ...] and B' = [B, −B₀, (s₁/s)·B₁, ...] hold this request's adapters and the active earlier ones
    (A_k, B_k) with their scalings s_k. The rank is 2r (r without an offset) plus the earlier ranks. alpha' is chosen so
    that the scaling s of "unlearn" stays the same. Modules of other ranks are listed in `rank_pattern` and
    `alpha_pattern`. The adapter loads with `PeftModel.from_pretrained(base, path)`, without unlora.

    Args:
        model: from `attach_adapters`.
        path: a folder that does not exist yet or is empty.
        max_rank: the largest rank of a module, to which the change of its weight is reduced by truncated SVD;
            `compression` returns the error. None writes the exact adapter.

    Returns:
        The folder.

    Raises:
        InputError: the folder is in use, the model has no "unlearn" adapter, or `max_rank` is below 1.
    """
    folder = Path(path)
    check_unused(folder, "path")
    _check_attached(model)
    factors = _joined_factors(model) if max_rank is None else _compressed(model, max_rank)[0]
    with atomic_path(folder) as partial:
        _write(model, factors, partial)
        if folder.exists():
            folder.rmdir()  # empty, as checked above; some systems cannot rename onto an existing folder
    return folder


def compression(model: PeftModel, max_rank: int) -> Compression:
    """Return the error of `export_adapter` with this `max_rank`."""
    _check_attached(model)
    return _compressed(model, max_rank)[1]


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write the files of the exact exported adapter into `folder`, which may contain other files."""
    _write(model, _joined_factors(model), folder)


@torch.no_grad()
def read_adapter(model: PeftModel, folder: Path) -> None:
    """Load the weights of "unlearn" and "offset" from a folder that `write_adapter` wrote.

    Raises:
        InputError: the file is missing or corrupt, or was written for other layers, another rank or other earlier
            adapters.
    """
    joined = _joined_factors(model)
    saved, present = _read_weights(folder), _named_tensors(joined)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in present.items()}:
        raise _not_resumable(folder, "it was saved for another model or rank")
    layers = dict(lora_layers(model))
    for name in joined:
        layer = layers[name]
        ours = [adapter for adapter in (UNLEARN, OFFSET) if adapter in layer.lora_A]
        ranks = [layer.r[adapter] for adapter in ours]
        # All adapters are concatenated along the rank, the first dimension of A and the second of B, ours first.
        for dim, (factor, key) in enumerate(zip((layer.lora_A, layer.lora_B), _keys(name), strict=True)):
            earlier = present[key].shape[dim] - sum(ranks)
            *parts, then = saved[key].split([*ranks, earlier], dim)
            if not torch.equal(present[key].narrow(dim, sum(ranks), earlier), then):
                raise _not_resumable(folder, "it was made with other earlier adapters")
            for adapter, part in zip(ours, parts, strict=True):
                factor[adapter].weight.copy_(part)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise _not_resumable(folder, f"it has no {ADAPTER_WEIGHTS}")
    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise _not_resumable(folder, f"{ADAPTER_WEIGHTS} is broken ({error})") from error


def _not_resumable(folder: Path, reason: str) -> InputError:
    fix = "name a checkpoint of this run, or start a new run"
    return InputError(Problem("resume_from_checkpoint", str(folder), reason, fix))


def _check_attached(model: object) -> None:
    if not isinstance(model, PeftModel) or UNLEARN not in model.peft_config:
        reason = f"it has no adapter {UNLEARN!r}"
        raise InputError(Problem("model", type(model).__name__, reason, "give the model that attach_adapters returned"))


@torch.no_grad()
def _joined_factors(model: PeftModel) -> dict[str, _Factors]:
    """Return {module name: factors of its active adapters, concatenated along the rank}, ours first."""
    ours: LoraConfig = model.peft_config[UNLEARN]
    usual = ours.lora_alpha / (ours.r**0.5 if ours.use_rslora else ours.r)
    joined = {}
    for name, layer in lora_layers(model):
        adapters = [adapter for adapter in model.active_adapters if adapter in layer.lora_A]
        if adapters:
            # An exported module has a single scaling, so each B is multiplied by the ratio of its own scaling to it.
            scaling = layer.scaling.get(UNLEARN, usual)
            a = torch.cat([layer.lora_A[key].weight for key in adapters])
            b = torch.cat([layer.lora_B[key].weight * (layer.scaling[key] / scaling) for key in adapters], dim=1)
            joined[name] = _Factors(a, b, scaling)
    return joined


def _compressed(model: PeftModel, max_rank: int) -> tuple[dict[str, _Factors], Compression]:
    if max_rank < 1:
        raise InputError(Problem("max_rank", max_rank, "an adapter has at least rank 1", "use a positive rank"))
    joined = _joined_factors(model)
    layers = bar(joined.items(), desc="compressing the adapter", unit=" layers")
    parts = {name: compress(module.a, module.b, max_rank) for name, module in layers}
    cost = total((part, joined[name].scaling) for name, part in parts.items())
    return {name: _Factors(part.a, part.b, joined[name].scaling) for name, part in parts.items()}, cost


def _write(model: PeftModel, factors: dict[str, _Factors], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with atomic_path(folder / ADAPTER_WEIGHTS) as partial:
        save_file(_named_tensors(factors), partial, metadata={"format": "pt"})
    _joined_config(model, factors).save_pretrained(folder)


def _named_tensors(factors: dict[str, _Factors]) -> dict[str, Tensor]:
    """Return the factors under their names in a PEFT file."""
    return {
        key: tensor.cpu().contiguous()
        for name, module in factors.items()
        for key, tensor in zip(_keys(name), (module.a, module.b), strict=True)
    }


def _keys(name: str) -> tuple[str, str]:
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def _joined_config(model: PeftModel, factors: dict[str, _Factors]) -> LoraConfig:
    """Return LoRA settings with which the joined factors have the same effect as all adapters.

    `r` is the largest rank, for programs that do not read the patterns. Every module of another rank or alpha has a
    pattern that matches exactly its name (PEFT adds the $). rsLoRA is never set, because its scaling alpha/√r would
    change with the rank.
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
        rank_pattern={f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        alpha_pattern={f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        fan_in_fan_out=ours.fan_in_fan_out,
        base_model_name_or_path=ours.base_model_name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )


def _target_modules(model: PeftModel, names: set[str]) -> list[str]:
    """Return the last components of the names (`q_proj`) if these match no other module, else the full names."""
    last = {name.rpartition(".")[2] for name in names}
    matched = {name for name in base_modules(model) if name.rpartition(".")[2] in last}
    return sorted(last if matched == names else names)
