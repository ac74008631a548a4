"""Checks of an adapter's settings and of the model's earlier adapters, and the ranks of layers that are small."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import nn

from unlora.adapter.targets import (
    TargetModules,
    base_modules,
    is_everything,
    is_head,
    is_linear,
    left_out,
    named_unreachable,
    target_shapes,
    within_layer,
)
from unlora.common.errors import Problem
from unlora.models.hashes import ADAPTER_WEIGHTS
from unlora.settings.checks import range_problems
from unlora.settings.training import ADAPTER_RANGES

# Names of an adapter's tensors: the factors of LoRA and DoRA, and the suffix after the module name in other tensors.
_FACTORS = re.compile(r"\.lora_(?:A|B|magnitude_vector)\b")
_WITHIN = re.compile(r"(?:\.(?:base_layer|modules_to_save|original_module|token_adapter))*\.\w+$")
UNLEARN, OFFSET = "unlearn", "offset"
# The fields of a `peft.LoraConfig` that our adapters may set: descriptive ones, and the settings of plain LoRA.
_LORA_FIELDS = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "fan_in_fan_out"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern"),
)
_EARLIER_FIELDS = (*_LORA_FIELDS, "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights")
# Initialisations of LoRA that leave the base weights unchanged. PiSSA, CorDA and others subtract from them.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


class AdapterSettings(Protocol):
    """The settings of an adapter. `UnlearnConfig` and `peft.LoraConfig` both have these fields."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool

    @property
    def target_modules(self) -> TargetModules:
        """Names of modules, a pattern, or "all-linear". None means all linear layers but the head."""


def check_adapter_settings(base: nn.Module, config: AdapterSettings) -> list[Problem]:
    """Return all problems of the adapter's settings and of the adapters that the model already has."""
    targets = target_shapes(base, config.target_modules)
    return [
        *_unread_settings(config),
        *_earlier_problems(base),
        *_range_problems(config),
        *_target_problems(base, config, list(targets)),
        *_pattern_problems(config, targets),
    ]


def _range_problems(config: AdapterSettings) -> Iterator[Problem]:
    """Check the ranges of all numbers. An `UnlearnConfig` has passed this check already, a `LoraConfig` has not."""
    yield from range_problems(config, ADAPTER_RANGES)
    for argument, name in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        for pattern, value in _pattern(config, argument).items():
            yield from ADAPTER_RANGES[name].problems(f"{argument}[{pattern!r}]", value)


def _target_problems(base: nn.Module, config: AdapterSettings, targets: list[str]) -> Iterator[Problem]:
    unreachable = named_unreachable(base, config.target_modules)
    for reason in sorted(set(unreachable.values())):
        names = [name for name, own in unreachable.items() if own == reason]
        shown = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        yield Problem("target_modules", shown, reason, "leave it out")
    fix = "name modules that it has"
    if not targets and not unreachable:
        wanted = config.target_modules or "all-linear"
        kinds = sorted({type(module).__name__ for module in base_modules(base).values()})
        yield Problem("target_modules", wanted, f"the model has no such linear layer among {', '.join(kinds)}", fix)
    elif not isinstance(config.target_modules, str) and not is_everything(config.target_modules):
        for name in sorted(config.target_modules or ()):
            if not any(f".{target}".endswith(f".{name}") for target in (*targets, *unreachable)):
                yield Problem("target_modules", name, "the model has no linear layer of this name", fix)
    modules = base_modules(base)
    if any(is_head(base, modules[name]) for name in targets):
        reason = (
            "LoRA on the output head is not supported, because the head is often tied to the embeddings and is run at "
            "labelled positions only"
        )
        yield Problem("target_modules", config.target_modules, reason, "remove the head, or use 'all-linear'")


def _pattern_problems(config: AdapterSettings, targets: Mapping[str, tuple[int, ...]]) -> Iterator[Problem]:
    """Yield a problem for each pattern that matches no layer, and each rank that is too large for all its layers."""
    for argument in ("rank_pattern", "alpha_pattern"):
        patterns = _pattern(config, argument)
        for pattern in sorted(patterns.keys() - {get_pattern_key(list(patterns), name) for name in targets}):
            yield Problem(argument, pattern, "it matches no adapted layer", "remove it")
    largest: dict[str, int] = {}  # by the pattern that sets a layer's rank
    for name, shape in targets.items():
        if key := _rank_key(config, name):
            largest[key] = max(largest.get(key, 0), min(shape))
    ranks = _pattern(config, "rank_pattern")
    for key, limit in largest.items():
        if ranks[key] > limit:
            reason = f"the largest adapted layer has ranks 1 to {limit}"
            yield Problem(f"rank_pattern[{key!r}]", ranks[key], reason, "use a rank in that range")


def rank_patterns(
    config: AdapterSettings, targets: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, int], dict[str, float]]:
    """Return PEFT's `rank_pattern` and `alpha_pattern`: the user's, and one for each layer that is too small.

    A layer that is too small for its rank gets its largest possible one, and an alpha that keeps its scaling.
    """
    alphas = _pattern(config, "alpha_pattern")
    own_ranks, own_alphas = {}, {}
    for name, (limit, rank) in _too_small(config, targets).items():
        alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
        exact = f"^{re.escape(name)}"
        own_ranks[exact] = limit
        own_alphas[exact] = alpha * (limit / rank) ** (0.5 if config.use_rslora else 1)
    # PEFT uses the first pattern that matches.
    return {**own_ranks, **_pattern(config, "rank_pattern")}, {**own_alphas, **alphas}


def adapter_notes(base: nn.Module, config: AdapterSettings) -> list[str]:
    """Return notes for the user: the weights that are not adapted, and the layers with a smaller rank."""
    lines = []
    if is_everything(config.target_modules) and (rest := left_out(base)):
        lines.append(f"not adapted: {rest}")
    small = _too_small(config, target_shapes(base, config.target_modules))
    found = sorted({(within_layer(name), limit) for name, (limit, _) in small.items()})
    if found:
        shown = ", ".join(f"{name} ({limit})" for name, limit in found)
        lines.append(f"layers that are too small for rank {config.r} get their largest rank: {shown}")
    return lines


def _too_small(config: AdapterSettings, targets: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Return {module name: (largest possible rank, configured rank)} of the layers too small for their rank."""
    ranks: dict[Any, int] = {None: config.r, **_pattern(config, "rank_pattern")}
    wanted = {name: ranks[_rank_key(config, name)] for name in targets}
    return {name: (min(shape), wanted[name]) for name, shape in targets.items() if min(shape) < wanted[name]}


def _rank_key(config: AdapterSettings, name: str) -> str | None:
    """Return the pattern in the user's `rank_pattern` that matches a layer, or None if `r` is its rank."""
    patterns = _pattern(config, "rank_pattern")
    key = get_pattern_key(list(patterns), name)
    return key if key in patterns else None


def _pattern(config: AdapterSettings, argument: str) -> dict[str, Any]:
    """Return `rank_pattern` or `alpha_pattern`, which only a `peft.LoraConfig` has."""
    return getattr(config, argument, None) or {}


def _unread_settings(config: AdapterSettings | PeftConfig, fields: tuple[str, ...] = _LORA_FIELDS) -> list[Problem]:
    """Return a problem for each setting of a `peft.LoraConfig` outside `fields` that is not at its default.

    Such an adapter would not be plain LoRA.
    """
    if not isinstance(config, LoraConfig):
        return []
    plain = LoraConfig()
    return [
        Problem(name, value, "unlora's adapters are plain LoRA", "remove it")
        for name, value in vars(config).items()
        if name not in fields and hasattr(plain, name) and value != getattr(plain, name)
    ]


def _earlier_problems(base: nn.Module) -> Iterator[Problem]:
    """Yield the reasons why the adapters that the model already has cannot stay active and be exported with ours."""
    layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
    kind = type(base).__name__
    if not isinstance(base, PeftModel):
        if layers:
            reason = "it has adapter layers without a PeftModel around them"
            yield Problem("model", kind, reason, "load the adapter with PeftModel.from_pretrained")
        return
    for name in sorted({UNLEARN, OFFSET} & set(base.peft_config)):
        reason = f"it already has an adapter {name!r}"
        yield Problem("model", kind, reason, "export that adapter, and load it on the base under another name")
    if any(layer.merged or layer.disable_adapters for layer in layers):
        reason = "its adapters are merged into the weights or switched off"
        yield Problem("model", kind, reason, "unmerge or enable them, or reload the model")
    for name in base.active_adapters:
        odd = _not_plain(base.peft_config[name], [layer for layer in layers if name in getattr(layer, "r", ())])
        if odd:
            reason = f"its adapter {name!r} is not plain LoRA ({', '.join(odd)})"
            yield Problem("model", kind, reason, "merge it first: model.merge_and_unload()")


def _not_plain(config: PeftConfig, layers: Iterable[BaseTunerLayer]) -> list[str]:
    """Return the properties of an adapter that cannot be exported as two factors per linear layer."""
    if not isinstance(config, LoraConfig):
        return [config.peft_type.value]
    odd = [problem.argument for problem in _unread_settings(config, _EARLIER_FIELDS)]
    if config.init_lora_weights not in _PLAIN_STARTS:
        odd.append(f"init_lora_weights={config.init_lora_weights!r}")
    if not all(is_linear(layer.get_base_layer()) for layer in layers):
        odd.append("layers that are not linear")
    return odd


def odd_parts(folder: Path) -> list[str]:
    """Return the properties of a saved adapter that cannot be exported as two factors per linear layer."""
    odd = _not_plain(PeftConfig.from_pretrained(folder), [])
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as weights:
        others = {name for name in weights.keys() if not _FACTORS.search(name)}  # noqa: SIM118 - not a mapping
    modules = sorted({_WITHIN.sub("", name).rpartition(".")[2] for name in others})
    return [*odd, f"weights of {', '.join(modules)}"] if modules else odd
