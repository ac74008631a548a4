"""Measure an importance once for all cells that only differ in training and evaluation."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from unlora.bench.cells import CODE, CONFIG, RUN, Cell
from unlora.common.reading import read_yaml
from unlora.runs.folder import IMPORTANCE
from unlora.settings import EvalConfig
from unlora.settings.names import Method
from unlora.settings.stopping import StoppingConfig
from unlora.training.config import UnlearnConfig

# Training settings that the importance depends on: the adapted weights and the scaling.
_MEASURED = {"r", "lora_alpha", "use_rslora", "target_modules"}
_NO_EFFECT = {field.name for kind in (UnlearnConfig, EvalConfig, StoppingConfig) for field in fields(kind)} - _MEASURED


def shared_importance(cell: Cell) -> Path | None:
    """Return the importance file of another cell with the same split, seed and settings of the estimate, if any.

    Two kinds of cells share nothing: those that continue from others, because each has a model of its own, and those
    that use a plugin, because its code may have changed since.
    """
    if cell.on is not None or (cell.folder / CODE).exists():
        return None
    init = Method.of(cell.method).init
    for folder in sorted(cell.folder.parents[1].glob(f"{init}+*/{cell.folder.name}")):
        file = folder / RUN / IMPORTANCE
        if folder != cell.folder and file.exists() and _estimate(folder) == _estimate(cell.folder):
            return file
    return None


def _estimate(folder: Path) -> dict[str, Any]:
    settings = read_yaml(folder / CONFIG)
    own_code = {"plugins": True} if (folder / CODE).exists() else {}
    return own_code | {name: value for name, value in settings.items() if name not in _NO_EFFECT}
