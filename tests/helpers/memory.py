"""Simulate a device that runs out of memory on large batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


@contextmanager
def memory_for(tokens: int) -> Iterator[None]:
    """Make linear layers run out of memory on more than `tokens` tokens, in the backward pass if there is one."""

    def fail(gradient=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    def check(module, args, output):
        if isinstance(module, nn.Linear) and args[0].shape[:-1].numel() > tokens:
            output.register_hook(fail) if output.requires_grad else fail()

    hook = register_module_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def told(caplog):
    """Return the log messages about running out of memory."""
    return [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
