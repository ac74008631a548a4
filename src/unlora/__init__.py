"""unlora: make a causal language model forget chosen data through a LoRA adapter, and measure how well it forgot."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unlora.common.noise import leave_out_noise
from unlora.common.version import __version__ as __version__

if TYPE_CHECKING:
    from unlora.adapter import attach_adapters, export_adapter, weighted_low_rank
    from unlora.common.errors import DivergenceError, InputError
    from unlora.importance import Moments, gradient_moments, relative_importance
    from unlora.importance.start import start_adapter
    from unlora.pipeline.request import Request
    from unlora.pipeline.unlearn import unlearn
    from unlora.training.config import UnlearnConfig
    from unlora.training.trainer import UnlearnTrainer

__all__ = [
    "DivergenceError",
    "InputError",
    "Moments",
    "Request",
    "UnlearnConfig",
    "UnlearnTrainer",
    "attach_adapters",
    "export_adapter",
    "gradient_moments",
    "relative_importance",
    "start_adapter",
    "unlearn",
    "weighted_low_rank",
]

# Before any other library is imported, and so in every process.
leave_out_noise()

_MODULES = {
    "unlora.adapter": ("attach_adapters", "export_adapter", "weighted_low_rank"),
    "unlora.common.errors": ("DivergenceError", "InputError"),
    "unlora.importance": ("Moments", "gradient_moments", "relative_importance"),
    "unlora.importance.start": ("start_adapter",),
    "unlora.pipeline.request": ("Request",),
    "unlora.pipeline.unlearn": ("unlearn",),
    "unlora.training.config": ("UnlearnConfig",),
    "unlora.training.trainer": ("UnlearnTrainer",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line answers before torch is loaded."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'unlora' has no attribute {name!r}")
