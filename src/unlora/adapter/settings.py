"""Which layers an adapter is put on, and what about its settings or the model's earlier adapters would not work."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from unlora.common.errors import Problem
from unlora.settings.checks import range_problems
from unlora.settings.training import ADAPTER_RANGES

UNLEARN, OFFSET = "unlearn", "offset"
TargetModules = str | Collection[str] | None
# The fields of a `peft.LoraConfig` that our own adapters may set: those that only describe it, and plain LoRA's.
_LORA_FIELDS = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "fan_in_fan_out"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern"),
)
_EARLIER_FIELDS = (*_LORA_FIELDS, "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights")
# Starts of a LoRA adapter that leave the base weights as they are. PiSSA, CorDA and others subtract from them.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


class AdapterSettings(Protocol):
    """What an adapter is made from. `UnlearnConfig` and `peft.LoraConfig` both have these fields."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool

    @property
    def target_modules(self) -> TargetModules:
        """Names of modules, a pattern, or "all-linear". None means all linear layers but the head."""


def check_adapter_settings(base: nn.Module, config: AdapterSettings) -> list[Problem]:
    """Return everything about the adapter, and about those that the model already has, that would not work."""
    targets = target_shapes(base, config.target_modules)
    return [
        *_unread_settings(config),
        *_earlier_problems(base),
        *_range_problems(config),
        *_target_problems(base, config, list(targets)),
        *_pattern_problems(config, targets),
    ]


def _range_problems(config: AdapterSettings) -> Iterator[Problem]:
    """Check the numbers that need no model. An `UnlearnConfig` has passed the same check, a `LoraConfig` has not."""
    yield from range_problems(config, ADAPTER_RANGES)
    for argument, name in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        for pattern, value in _pattern(config, argument).items():
            yield from ADAPTER_RANGES[name].problems(f"{argument}[{pattern!r}]", value)


def _target_problems(base: nn.Module, config: AdapterSettings, targets: list[str]) -> Iterator[Problem]:
    fix = "name modules that it has"
    if not targets:
        wanted = config.target_modules or "all-linear"
        yield Problem("target_modules", wanted, "the model has no such linear layer", fix)
    elif not isinstance(config.target_modules, str | None):
        for name in sorted(config.target_modules):
            if not any(f".{target}".endswith(f".{name}") for target in targets):
                yield Problem("target_modules", name, "the model has no linear layer of this name", fix)
    modules = base_modules(base)
    if any(_is_head(base, modules[name]) for name in targets):
        reason = (
            "LoRA on the output head is not supported, because the head is often tied to the embeddings and is run at "
            "labelled positions only"
        )
        yield Problem("target_modules", config.target_modules, reason, "remove the head, or use 'all-linear'")


def _pattern_problems(config: AdapterSettings, targets: Mapping[str, tuple[int, ...]]) -> Iterator[Problem]:
    """Yield patterns that match no layer, and ranks that a layer is too small for."""
    for argument in ("rank_pattern", "alpha_pattern"):
        patterns = _pattern(config, argument)
        for pattern in patterns.keys() - {get_pattern_key(list(patterns), name) for name in targets}:
            yield Problem(argument, pattern, "no adapted layer has such a name", "remove it")
    ranks: dict[Any, int] = {None: config.r, **_pattern(config, "rank_pattern")}
    largest: dict[str | None, int] = {}  # by the pattern that sets a layer's rank, None where `r` does
    for name, shape in targets.items():
        key = get_pattern_key(list(_pattern(config, "rank_pattern")), name)
        key = key if key in ranks else None
        largest[key] = min(largest.get(key, min(shape)), min(shape))
    for key, limit in largest.items():
        if ranks[key] > limit:
            argument = "r" if key is None else f"rank_pattern[{key!r}]"
            reason = f"the smallest adapted layer has ranks 1 to {limit}"
            yield Problem(argument, ranks[key], reason, "use a rank in that range")


def _pattern(config: AdapterSettings, argument: str) -> dict[str, Any]:
    """Return the ranks or alphas of single modules, which only a `peft.LoraConfig` has."""
    return getattr(config, argument, None) or {}


def _unread_settings(config: AdapterSettings | PeftConfig, fields: tuple[str, ...] = _LORA_FIELDS) -> list[Problem]:
    """Return the settings of a `peft.LoraConfig` other than `fields`, which make something else of it than LoRA."""
    if not isinstance(config, LoraConfig):
        return []
    plain = LoraConfig()
    return [
        Problem(name, value, "unlora's adapters are plain LoRA", "remove it")
        for name, value in vars(config).items()
        if name not in fields and hasattr(plain, name) and value != getattr(plain, name)
    ]


def _earlier_problems(base: nn.Module) -> Iterator[Problem]:
    """Yield what about the model's own adapters keeps them from staying active and being exported with ours."""
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
        yield Problem("model", kind, reason, "unmerge or enable them, or load the model anew")
    for name in base.active_adapters:
        odd = _not_plain(base.peft_config[name], [layer for layer in layers if name in getattr(layer, "r", ())])
        if odd:
            reason = f"its adapter {name!r} is not plain LoRA ({', '.join(odd)})"
            yield Problem("model", kind, reason, "merge it first: model.merge_and_unload()")


def _not_plain(config: PeftConfig, layers: Iterable[BaseTunerLayer]) -> list[str]:
    """Return what keeps an adapter from being written as two factors for each linear layer."""
    if not isinstance(config, LoraConfig):
        return [config.peft_type.value]
    odd = [problem.argument for problem in _unread_settings(config, _EARLIER_FIELDS)]
    if config.init_lora_weights not in _PLAIN_STARTS:
        odd.append(f"init_lora_weights={config.init_lora_weights!r}")
    if not all(_is_linear(layer.get_base_layer()) for layer in layers):
        odd.append("layers that are not linear")
    return odd


def target_shapes(base: nn.Module, target_modules: TargetModules) -> dict[str, tuple[int, ...]]:
    """Return {module name: (out, in)} of the linear layers that PEFT would adapt. None means all but the head."""
    from peft.tuners.tuners_utils import check_target_module_exists

    linear = {name: module for name, module in base_modules(base).items() if _is_linear(module)}
    if target_modules in (None, "all-linear"):
        return {name: linear_shape(module) for name, module in linear.items() if not _is_head(base, module)}
    probe = LoraConfig(target_modules=target_modules)
    return {name: linear_shape(module) for name, module in linear.items() if check_target_module_exists(probe, name)}


def base_modules(base: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of the model under any adapters, by the names that they have without adapters."""
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    modules: dict[str, nn.Module] = dict(inner.named_modules())
    wrapped = {name: module.get_base_layer() for name, module in modules.items() if isinstance(module, LoraLayer)}
    inside = tuple(f"{name}." for name in wrapped)
    return {name: wrapped.get(name, module) for name, module in modules.items() if not name.startswith(inside)}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def linear_shape(module: nn.Linear | Conv1D) -> tuple[int, ...]:
    """Return (out, in) of a linear layer, however it stores its weight."""
    if hasattr(module, "in_features"):  # a quantised weight is packed and has another shape
        return (int(module.out_features), int(module.in_features))
    return tuple(module.weight.shape[::-1])  # GPT-2's Conv1D stores [in, out]


def _is_head(base: nn.Module, module: nn.Module) -> bool:
    head = getattr(base, "get_output_embeddings", lambda: None)()
    return head is not None and module is (head.get_base_layer() if isinstance(head, LoraLayer) else head)
