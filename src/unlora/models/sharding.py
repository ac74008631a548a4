"""Shard a frozen base model over the processes, with PyTorch's FSDP2 or DeepSpeed's ZeRO-3.

Only the base is sharded. The adapters are small, so every process holds them completely and `UnlearnTrainer` averages
their gradients as it does without sharding. Checkpoints, resuming and export are therefore the same as with a single
process. The FSDP and DeepSpeed support of transformers' trainer is not used, because it also shards the adapters, and
only when training starts, whereas importance and SVD need the whole model before.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from unlora.common.distributed import keep_in_step, processes
from unlora.settings.sharding import SECTION, zero3_section

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def zero3_settings(path: str, dtype: str) -> dict[str, Any]:
    """Return the configuration for DeepSpeed.

    Args:
        path: the user's configuration. Only its `zero_optimization` section is used.
        dtype: the dtype of the weights: "float32", "bfloat16" or "float16".
    """
    return {
        SECTION: zero3_section(path),
        "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, but not used here
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
    }


def shard_fsdp(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Shard a model that is on the CPU over the processes. Each layer is gathered only while it runs.

    Source: Zhao et al. 2023 (arXiv 2304.11277).

    Args:
        model: the whole model.
        layers: its decoder layers. Each is gathered as a unit.
        device: this process's device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes()[1],))
    # Each layer is moved to the device and sharded before the next one, so the device never holds the whole model.
    # Parameters outside the layers (embeddings, head) are sharded last, with `model`.
    for module in (*layers, model):
        fully_shard(module.to(device), mesh=mesh)
    keep_in_step()


@contextmanager
def zero3_reading(settings: dict[str, Any]) -> Iterator[None]:
    """Make `from_pretrained` shard each weight as it reads it. `hold_zero3` must follow.

    Source: Rajbhandari et al. 2020 (arXiv 1910.02054).
    """
    with redirect_stdout(sys.stderr):  # DeepSpeed prints to stdout, which is reserved for results
        _log_to_stderr()
        from transformers.integrations import HfDeepSpeedConfig

        # transformers treats ZeRO-3 as enabled as long as this object exists. It is deleted after loading, because the
        # adapters, which are created later, must not be sharded.
        reading = HfDeepSpeedConfig(settings)
        yield
        del reading


def _log_to_stderr() -> None:
    """Redirect DeepSpeed's logger to stderr. Its handlers keep a reference to stdout from import time."""
    import deepspeed  # noqa: F401 - creates the handlers

    logger = logging.getLogger("DeepSpeed")
    logger.disabled = False
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def hold_zero3(model: nn.Module, settings: dict[str, Any]) -> None:
    """Make DeepSpeed gather the weights of each layer before it runs, and release them afterwards."""
    import deepspeed

    with redirect_stdout(sys.stderr):
        deepspeed.initialize(model=model, config=settings)
    keep_in_step()


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model is sharded over the processes."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) or _in_zero3(parameter) for parameter in model.parameters())


def whole(weight: Tensor) -> Tensor:
    """Return the full weight, gathered from all processes if it is sharded. All processes must call this."""
    from torch.distributed.tensor import DTensor

    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if _in_zero3(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight


def _in_zero3(weight: Tensor) -> bool:
    return hasattr(weight, "ds_id")
