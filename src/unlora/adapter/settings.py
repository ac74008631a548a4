"""Which layers an adapter takes, and what about its settings or the model's earlier adapters would not work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn

from unlora.common.errors import Problem

UNLEARN, OFFSET = "unlearn", "offset"
# Fields of a `peft.LoraConfig` that only describe the adapter, and what our own and earlier adapters may set.
DESCRIPTION = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "fan_in_fan_out"),
)
LORA_FIELDS = (
    *DESCRIPTION,
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern"),
)
EARLIER_FIELDS = (*LORA_FIELDS, "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights")
# Starts of a LoRA adapter that leave the base weights as they are; PiSSA, CorDA and others subtract from them.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


class AdapterSettings(Protocol):
    """What an adapter needs to know. `UnlearnConfig` and `peft.LoraConfig` both have it."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    target_modules: Any


def check_adapter_settings(base: nn.Module, config: AdapterSettings) -> list[Problem]:
    """Everything about the adapter, and about those that the model carries, that would not work."""
    problems = [*_unread_settings(config), *_earlier_problems(base)]
    if config.lora_dropout:
        reason = "dropout would drop different units in the two adapters, so they would not cancel at the start"
        problems.append(Problem("lora_dropout", config.lora_dropout, reason, "use 0"))
    alphas = {"lora_alpha": config.lora_alpha} | {f"alpha_pattern[{k!r}]": v for k, v in _patterns(config)[1].items()}
    problems += [
        Problem(name, value, "the factors are divided by it", "use a positive value")
        for name, value in alphas.items()
        if value <= 0
    ]
    targets = target_shapes(base, config.target_modules)
    return [*problems, *_target_problems(base, config, list(targets)), *_rank_problems(config, targets)]


def _target_problems(base: nn.Module, config: AdapterSettings, targets: list[str]) -> Iterable[Problem]:
    if not targets:
        wanted = config.target_modules or "all-linear"
        yield Problem("target_modules", wanted, "the model has no such linear layer", "name modules it has")
    elif not isinstance(config.target_modules, str | None):
        for name in sorted(config.target_modules):
            if not any(f".{target}".endswith(f".{name}") for target in targets):
                yield Problem(
                    "target_modules", name, "the model has no linear layer of this name", "name modules it has"
                )
    modules = base_modules(base)
    if any(_is_head(base, modules[name]) for name in targets):
        reason = "LoRA on the output head is not supported: it is often tied to the embeddings, and labels are gathered"
        fix = "leave the head out, or use 'all-linear'"
        yield Problem("target_modules", config.target_modules, f"{reason} there", fix)


def _rank_problems(config: AdapterSettings, targets: Mapping[str, tuple[int, ...]]) -> Iterable[Problem]:
    ranks, alphas = _patterns(config)
    for argument, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        used = {get_pattern_key(list(patterns), name) for name in targets}
        for pattern in patterns.keys() - used:
            yield Problem(argument, pattern, "no adapted layer is named so", "leave it out")
    whole = [min(shape) for name, shape in targets.items() if get_pattern_key(list(ranks), name) not in ranks]
    largest = {"r": min(whole, default=config.r)}
    values = {"r": config.r}
    for pattern, rank in ranks.items():
        sizes = [min(shape) for name, shape in targets.items() if get_pattern_key(list(ranks), name) == pattern]
        argument = f"rank_pattern[{pattern!r}]"
        largest[argument], values[argument] = min(sizes, default=rank), rank
    for argument, value in values.items():
        if not 1 <= value <= largest[argument]:
            reason = f"the smallest adapted layer has ranks 1 to {largest[argument]}"
            yield Problem(argument, value, reason, "use a rank in that range")


def _patterns(config: Any) -> tuple[dict[str, int], dict[str, float]]:
    """Ranks and alphas of single modules, which only a `peft.LoraConfig` has."""
    return getattr(config, "rank_pattern", None) or {}, getattr(config, "alpha_pattern", None) or {}


def _unread_settings(config: Any, fields: tuple[str, ...] = LORA_FIELDS) -> list[Problem]:
    """Settings of a `peft.LoraConfig` beside `fields`: they make something else of it than plain LoRA."""
    if not isinstance(config, LoraConfig):
        return []
    plain = LoraConfig()
    return [
        Problem(name, value, "unlora's adapters are plain LoRA", "leave it out")
        for name, value in vars(config).items()
        if name not in fields and hasattr(plain, name) and value != getattr(plain, name)
    ]


def _earlier_problems(base: nn.Module) -> Iterable[Problem]:
    """Adapters on the model that cannot stay and be exported together with ours."""
    layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]
    kind, merge = type(base).__name__, "merge it first: model.merge_and_unload()"
    if not isinstance(base, PeftModel):
        if layers:
            reason = "it has adapter layers without a PeftModel around them"
            yield Problem("model", kind, reason, "load the adapter with PeftModel.from_pretrained")
        return
    for name in sorted({UNLEARN, OFFSET} & set(base.peft_config)):
        reason, fix = f"it already has an adapter {name!r}", "export that, and load it on the base under another name"
        yield Problem("model", kind, reason, fix)
    if any(layer.merged or layer.disable_adapters for layer in layers):
        reason = "its adapters are merged into the weights or switched off"
        yield Problem("model", kind, reason, "unmerge or enable them, or load the model anew")
    for name in base.active_adapters:
        odd = _not_plain(base.peft_config[name], [layer for layer in layers if name in getattr(layer, "r", ())])
        if odd:
            yield Problem("model", kind, f"its adapter {name!r} is not plain LoRA ({', '.join(odd)})", merge)


def _not_plain(config: Any, layers: list[Any]) -> list[str]:
    """What about an adapter cannot be written as two factors per linear layer."""
    if not isinstance(config, LoraConfig):
        return [config.peft_type.value]
    odd = [problem.argument for problem in _unread_settings(config, EARLIER_FIELDS)]
    if config.init_lora_weights not in PLAIN_STARTS:
        odd.append(f"init_lora_weights={config.init_lora_weights!r}")
    if not all(_is_linear(layer.get_base_layer()) for layer in layers):
        odd.append("layers that are not linear")
    return odd


def target_shapes(base: nn.Module, target_modules: Any) -> dict[str, tuple[int, ...]]:
    """Names and weight shapes of the linear layers that PEFT would adapt."""
    from peft.tuners.tuners_utils import check_target_module_exists

    linear = {name: module for name, module in base_modules(base).items() if _is_linear(module)}
    if target_modules in (None, "all-linear"):
        return {name: linear_shape(module) for name, module in linear.items() if not _is_head(base, module)}
    probe = LoraConfig(target_modules=target_modules)
    return {name: linear_shape(module) for name, module in linear.items() if check_target_module_exists(probe, name)}


def base_modules(base: nn.Module) -> dict[str, nn.Module]:
    """The modules of the model under any adapters, by the names that they have without them."""
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    modules: dict[str, Any] = dict(inner.named_modules())
    wrapped = {name: module.get_base_layer() for name, module in modules.items() if isinstance(module, LoraLayer)}
    inside = tuple(f"{name}." for name in wrapped)
    return {name: wrapped.get(name, module) for name, module in modules.items() if not name.startswith(inside)}


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def linear_shape(module: Any) -> tuple[int, ...]:
    """[out, in] of a linear layer, however it stores its weight."""
    if hasattr(module, "in_features"):  # a quantised weight is packed and has another shape
        return (int(module.out_features), int(module.in_features))
    return tuple(module.weight.shape[::-1])  # Conv1D stores [in, out]


def _is_head(base: nn.Module, module: nn.Module) -> bool:
    head = getattr(base, "get_output_embeddings", lambda: None)()
    return head is not None and module is (head.get_base_layer() if isinstance(head, LoraLayer) else head)
