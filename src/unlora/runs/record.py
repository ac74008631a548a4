"""record.json: the inputs of a run, the software and hardware that it ran on, and its results.

It contains no secrets, no user names, no paths on the machine and no names of local datasets. Only the last part of the
base model's path is kept. `unlora.runs.verify` checks a run against its record.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from unlora.common import plugins
from unlora.common.files import write_json
from unlora.common.version import __version__
from unlora.data.sources import Record, Stream, load_set
from unlora.models.hashes import adapter_sha256, base_sha256, file_sha256, rows_sha256
from unlora.models.source import source_of
from unlora.runs.command import repeat_command
from unlora.runs.folder import ADAPTER, EVIDENCE, RECORD, START_ADAPTER
from unlora.settings import DataConfig, EvalConfig, ModelConfig, StoppingConfig

T = TypeVar("T")
P = ParamSpec("P")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")
# The parts of metrics.json that are recorded. The log of the training steps is left out.
_METRICS = ("original", "unlearned", "compression")


class Clock:
    """Measure the duration of each stage. `seconds` has the durations by the name of the stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, record its duration as that of the stage, and return its result."""
        started = time.monotonic()
        result = function(*args, **kwargs)
        self.seconds[stage] = round(time.monotonic() - started, 3)
        return result


def describe_inputs(
    model: ModelConfig,
    data: DataConfig,
    stopping: StoppingConfig,
    evaluation: EvalConfig,
    forget: Sequence[Record],
    retain: Sequence[Record],
    evaluated: Mapping[str, Sequence[Record]],
    stream: Stream | None = None,
) -> dict[str, Any]:
    """Return names and hashes of the datasets and the model of a run. The datasets are hashed as the run has read them.

    Args:
        model, data, stopping, evaluation: the run's settings.
        forget: the forget set.
        retain: the rows of the retain set that were read.
        evaluated: the evaluated rows of `eval_data`, by set.
        stream: how the rows of a streamed retain set were drawn. The hash is that of the drawn rows.
    """
    parts = {"forget": _described_set(data, "forget", forget), "retain": _described_set(data, "retain", retain)}
    if stream is not None:
        parts["retain"]["stream"] = asdict(stream)
    if stopping.holdout_data:
        parts["holdout"] = _described_set(stopping, "holdout", load_set(stopping, "holdout"))
    if evaluation.eval_data:
        for name, rows in evaluated.items():
            configuration = getattr(evaluation, f"eval_{name}_name")
            parts[f"eval_{name}"] = _described(evaluation.eval_data, configuration, None, rows)
    source = source_of(model)
    name, revision = source.base.model_name_or_path, source.base.model_revision
    base = {"name": shown_name(name), "revision": revision, "sha256": base_sha256(name, revision)}
    if source.adapter is None:
        return {"data": parts, "base": base}
    start = {"name": shown_name(model.model_name_or_path), "sha256": adapter_sha256(source.adapter)}
    return {"data": parts, "base": base, START_ADAPTER: start}


def _described_set(settings: DataConfig | StoppingConfig, name: str, rows: Sequence[Record]) -> dict[str, Any]:
    path, configuration, split = (getattr(settings, f"{name}_{part}") for part in ("data", "name", "split"))
    return _described(path, configuration, split, rows)


def _described(path: str, name: str | None, split: str | None, rows: Sequence[Record]) -> dict[str, Any]:
    """Return the source of a dataset on the Hub, its number of rows, and their hash.

    A local dataset is identified by its hash alone. Its path, configuration and split are file names, which may contain
    the name of the person who asked to be forgotten.
    """
    names = ("a local file", None, None) if Path(path).exists() else (path, name, split)
    return {
        **dict(zip(("source", "name", "split"), names, strict=True)),
        "rows": len(rows),
        "sha256": rows_sha256(rows),
    }


def shown_name(path: str) -> str:
    """Return a model's name on the Hub, or the last part of a local path, which reveals nothing about the machine."""
    local = Path(path)
    return local.resolve().name if local.exists() or local.is_absolute() else path


def write_record(
    folder: Path,
    inputs: dict[str, Any],
    times: dict[str, float],
    metrics: dict[str, Any],
    *,
    seeds: dict[str, int],
    device: str,
    processes: int,
    resumed: bool,
) -> None:
    """Write the record of a run whose folder is complete except for the report.

    Args:
        folder: the run's folder.
        inputs: from `describe_inputs`.
        times: duration of each stage in this process, in seconds. A resumed run has those after its last start.
        metrics: as in metrics.json.
        seeds: by name.
        device: the type of device, such as "cuda".
        processes: number of processes.
        resumed: whether the run was resumed.
    """
    record = {
        "unlora": __version__,
        "command": repeat_command(folder),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "resumed": resumed,
        **inputs,
        "adapter": {"sha256": adapter_sha256(folder / ADAPTER)},
        "files": {name: file_sha256(folder / name) for name in EVIDENCE if (folder / name).is_file()},
        "versions": {"python": platform.python_version(), "unlora": __version__}
        | {name: metadata.version(name) for name in _PACKAGES},
        "plugins": plugins.described(),
        "seeds": seeds,
        "hardware": _hardware(device, processes),
        "times": times,
        "peak_memory_bytes": _peak_memory(),
        "metrics": {name: metrics[name] for name in _METRICS if name in metrics},
    }
    write_json(folder / RECORD, record)


def _hardware(device: str, processes: int) -> dict[str, Any]:
    """Return the hardware that the run used, without the name of the machine."""
    import psutil
    import torch

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device,
        "devices": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
        "processes": processes,
    }


def _peak_memory() -> dict[str, int]:
    """Return the peak memory of this process in bytes: main memory (not on Windows) and each CUDA device's memory."""
    import torch

    peaks = {f"cuda:{place}": torch.cuda.max_memory_allocated(place) for place in range(torch.cuda.device_count())}
    if sys.platform != "win32":
        import resource

        # macOS counts bytes, Linux kilobytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peaks["machine"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peaks
