"""The layers of a model that can be adapted: all linear layers but the output head and a few exceptions.

Not adapted are the weights of experts that are stacked in one parameter, convolutions, and the linear layers that
`unreachable` returns. `left_out` lists them, so that the user can be told.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unlora.models.forward import text_part

TargetModules = str | Collection[str] | None
EVERYTHING = "all-linear"
# Modules with the code of models: transformers' own, and code loaded from a model's repository.
_MODELING = ("transformers.models.", "transformers_modules.")
_ROUTER = "it returns more than its product, as routers do"
_BYPASSED = "the layer around it reads its weight directly, so that an adapter on it would have no effect"
# Layers that run more than once per forward pass.
_REPEATED = ("altup.modality_router",)
_RUNS_TWICE = "it runs more than once in a pass, so that the gradients of single examples are not known"
_EXPERT_NAME = "PEFT mistakes its name for the name of stacked expert weights"


def target_shapes(base: nn.Module, target_modules: TargetModules) -> dict[str, tuple[int, ...]]:
    """Return {module name: (out, in)} of the linear layers to adapt. None selects all but the output head."""
    left_out = unreachable(base)
    linear = {name: module for name, module in _linear_layers(base).items() if name not in left_out}
    if is_everything(target_modules):
        return {name: linear_shape(module) for name, module in linear.items() if not is_head(base, module)}
    return {name: linear_shape(module) for name, module in linear.items() if _names(target_modules, name)}


def is_everything(target_modules: TargetModules) -> bool:
    """Return whether `target_modules` selects all linear layers but the output head."""
    return target_modules in (None, EVERYTHING) or list(target_modules) == [EVERYTHING]


def unreachable(base: nn.Module) -> dict[str, str]:
    """Return {module name: reason} of the linear layers that cannot be adapted."""
    modules, linear = base_modules(base), _linear_layers(base)
    as_experts = _names_of_experts(base, {name.rpartition(".")[2] for name in linear})
    found = {}
    for name, module in linear.items():
        owner, _, leaf = name.rpartition(".")
        if not _returns_product(module):
            found[name] = _ROUTER
        elif leaf in _read_directly(type(modules[owner])):  # type: ignore[arg-type]  # types are hashable
            found[name] = _BYPASSED
        elif name.endswith(_REPEATED):
            found[name] = _RUNS_TWICE
        elif leaf in as_experts:
            found[name] = _EXPERT_NAME
    return found


def named_unreachable(base: nn.Module, target_modules: TargetModules) -> dict[str, str]:
    """Return {module name: reason} of the unreachable layers that `target_modules` names explicitly."""
    if is_everything(target_modules):
        return {}
    return {name: reason for name, reason in unreachable(base).items() if _names(target_modules, name)}


@dataclass(frozen=True)
class LeftOut:
    """The weights that are not adapted, apart from embeddings and output head.

    Args:
        names: their distinct names within a decoder layer.
        share: their share of all weights apart from embeddings and output head.
    """

    names: list[str]
    share: float

    def __str__(self) -> str:
        return f"{', '.join(self.names)} ({_percent(self.share)} of the weights outside embeddings and output head)"


def left_out(base: nn.Module) -> LeftOut | None:
    """Return the matrices that are not adapted even if all linear layers are, or None if there are none."""
    modules, adapted, start = base_modules(base), target_shapes(base, None), text_prefix(base)
    sizes: dict[str, int] = defaultdict(int)
    reached = 0
    for name, module in modules.items():
        if not name.startswith(start) or isinstance(module, nn.Embedding) or is_head(base, module):
            continue
        if name in adapted:
            reached += prod(adapted[name])
            continue
        for own, parameter in module.named_parameters(recurse=False):
            # Vectors of any shape do not count, and neither do biases, which are matrices in stacked experts.
            if parameter.dim() > 1 and parameter.numel() > max(parameter.shape) and not own.endswith("bias"):
                sizes[within_layer(f"{name}.{own}")] += parameter.numel()
    total = reached + sum(sizes.values())
    return LeftOut(list(sizes), sum(sizes.values()) / total) if sizes else None


def base_modules(base: nn.Module) -> dict[str, nn.Module]:
    """Return {name: module} of the base model, with adapter layers replaced by the layers that they wrap."""
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    modules: dict[str, nn.Module] = dict(inner.named_modules())
    wrapped = {name: module.get_base_layer() for name, module in modules.items() if isinstance(module, LoraLayer)}
    inside = tuple(f"{name}." for name in wrapped)
    return {name: wrapped.get(name, module) for name, module in modules.items() if not name.startswith(inside)}


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is a linear layer, including GPT-2's Conv1D."""
    return isinstance(module, nn.Linear | Conv1D)


def linear_shape(module: nn.Linear | Conv1D) -> tuple[int, ...]:
    """Return (out, in) of a linear layer, also if its weight is transposed or quantised."""
    if hasattr(module, "in_features"):  # a quantised weight is packed and has another shape
        return (int(module.out_features), int(module.in_features))
    return tuple(module.weight.shape[::-1])  # GPT-2's Conv1D stores [in, out]


def is_head(base: nn.Module, module: nn.Module) -> bool:
    """Return whether the module is the output head of the model."""
    head = getattr(base, "get_output_embeddings", lambda: None)()
    return head is not None and module is (head.get_base_layer() if isinstance(head, LoraLayer) else head)


def _linear_layers(base: nn.Module) -> dict[str, Any]:
    start = text_prefix(base)
    return {name: module for name, module in base_modules(base).items() if name.startswith(start) and is_linear(module)}


def text_prefix(base: nn.Module) -> str:
    """Return the name prefix of the modules that process text. A vision-language model runs no others on text."""
    core = base.get_base_model() if isinstance(base, PeftModel) else base
    part = text_part(core) if isinstance(core, PreTrainedModel) else core
    return next((f"{name}." for name, module in core.named_modules() if name and module is part), "")


def _names(target_modules: TargetModules, name: str) -> bool:
    return bool(check_target_module_exists(LoraConfig(target_modules=target_modules), name))


def within_layer(name: str) -> str:
    """Return the part of a module name after the layer index, such as `mlp.experts.down_proj`."""
    return re.sub(r"^.*?\.\d+\.", "", name).removesuffix(".weight")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"


def _returns_product(module: nn.Module) -> bool:
    """Return whether a linear layer returns a single tensor. Custom classes are run on the meta device to find out."""
    kind = type(module)
    if kind.forward in (nn.Linear.forward, Conv1D.forward) or not kind.__module__.startswith(_MODELING):
        return True
    out, size = linear_shape(module)
    empty = {"weight": torch.empty(out, size, device="meta"), "bias": torch.empty(out, device="meta")}
    given = {name: empty[name] for name, _ in module.named_parameters(recurse=False) if name in empty}
    try:
        return isinstance(functional_call(module, given, (torch.empty(1, size, device="meta"),)), Tensor)
    except Exception:  # a plain linear layer would run on any input
        return False


@cache
def _read_directly(kind: type[nn.Module]) -> set[str]:
    """Return the names of the layers of a state-space mixer whose weights are passed to a fused kernel.

    Such mixers are recognised by their convolution. Some of them call the layers on a CPU, but not on a GPU.
    """
    if not kind.__module__.startswith(_MODELING):
        return set()
    source = inspect.getsource(kind)
    if "self.conv1d" not in source:
        return set()
    return set(re.findall(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape))", source))


def _names_of_experts(base: nn.Module, leaves: set[str]) -> set[str]:
    """Return the layer names that PEFT takes for stacked expert weights anywhere in the model.

    In older versions of transformers each expert had linear layers with these names. In some models, dense layers and
    shared experts still have them.
    """
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    found = set()
    for leaf in leaves:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, inner, None)
        except ValueError:  # PEFT converts it only together with the layer it is fused with
            found.add(leaf)
        if leaf not in config.target_modules:
            found.add(leaf)
    return found
