"""VILA: the Fisher information of a weight from the gradient variance of its LoRA factors (Kim et al., COLM 2025)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from unlora.fisher.moments import Moments


def vila_fisher(moments: Moments) -> Iterator[tuple[str, Tensor]]:
    """F_W = V_B · V_A, where V is the variance of each factor's gradient (arXiv 2508.21300).

    The variance and not E[g²]: information is the variance of the score, and the mean score vanishes only on data that
    the model itself would have produced, which a forget set is not.

    Yields:
        (module name, [out, in] Fisher information), one layer at a time.
    """
    for name_a in moments.mean:
        module, factor, tail = name_a.partition(".lora_A.")
        if factor:
            variance_b = moments.variance(f"{module}.lora_B.{tail}")
            yield module_name(module), variance_b @ moments.variance(name_a)


def module_name(module: str) -> str:
    """The adapted module's name in the base model: PEFT's own prefix belongs to the wrapper."""
    return module.removeprefix("base_model.model.")
