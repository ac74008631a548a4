"""A frozen base that no process holds whole: PyTorch's FSDP2, or DeepSpeed's ZeRO-3.

Only the base is spread. The adapters are small, every process has them whole, and training stays that of
`UnlearnTrainer`, so checkpoints and the exported adapter are those of one process.
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
    from torch import Tensor


def zero3_settings(path: str, dtype: str) -> dict[str, Any]:
    """What DeepSpeed is told: the user's section, and the type of the weights ("float32", "bfloat16", "float16")."""
    return {
        SECTION: zero3_section(path),
        "train_micro_batch_size_per_gpu": 1,  # asked for by DeepSpeed, used for nothing
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
    }


def shard_fsdp(model: Any, layers: Iterable[Any], device: Any) -> None:
    """Spreads the weights of a model on the CPU over the processes; each layer is whole only while it runs.

    Source: Zhao et al. 2023 (arXiv 2304.11277).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes()[1],))
    for module in (*layers, model):
        fully_shard(module.to(device), mesh=mesh)
    keep_in_step()


@contextmanager
def zero3_reading(settings: dict[str, Any]) -> Iterator[None]:
    """Within, `from_pretrained` spreads each weight as it reads it; `hold_zero3` must follow.

    Source: Rajbhandari et al. 2020 (arXiv 1910.02054).
    """
    with redirect_stdout(sys.stderr):  # results go to stdout, and DeepSpeed prints there
        log_to_stderr()
        from transformers.integrations import HfDeepSpeedConfig

        # transformers takes ZeRO-3 to be on while this object lives: not beyond loading, since adapters are whole.
        reading = HfDeepSpeedConfig(settings)
        yield
        del reading


def log_to_stderr() -> None:
    """Has DeepSpeed's logger, whose handlers keep the stdout that they found, speak on stderr."""
    import deepspeed  # noqa: F401 - makes the handlers

    logger = logging.getLogger("DeepSpeed")
    logger.disabled = False
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def hold_zero3(model: Any, settings: dict[str, Any]) -> None:
    """Has DeepSpeed gather each layer's weights when it runs, and let go of them after it."""
    import deepspeed

    with redirect_stdout(sys.stderr):
        deepspeed.initialize(model=model, config=settings)
    keep_in_step()


def is_sharded(model: Any) -> bool:
    """Whether the processes hold the model between them."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) or _in_zero3(parameter) for parameter in model.parameters())


def whole(weight: Tensor) -> Tensor:
    """A weight, from all processes if it is sharded; called by all."""
    from torch.distributed.tensor import DTensor

    if isinstance(weight, DTensor):
        return weight.full_tensor()
    if _in_zero3(weight):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return weight


def _in_zero3(weight: Any) -> bool:
    return hasattr(weight, "ds_id")
