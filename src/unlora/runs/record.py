"""record.json: what a run was made from, with what software and hardware, and what came out.

It contains no secret, no user name, no path on the machine and no name of a local dataset. Of the base's path only the
last part is kept. `unlora.runs.verify` checks whether a run is still what its record says.
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
# The parts of metrics.json that are recorded. The log of every training step is not.
_METRICS = ("original", "unlearned", "compression")


class Clock:
    """The seconds that each stage took, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function as a stage, and return its result."""
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
    """Return the hashes of everything that a run works on. They are taken before it starts, of what it has read.

    Args:
        model, data, stopping, evaluation: the run's settings.
        forget: the forget set.
        retain: the retain set, as far as it was read.
        evaluated: the evaluated rows of `eval_data`, by set.
        stream: how the rows of a streamed retain set were drawn. The hash is of the drawn rows.
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
    """Return where on the Hub a set is from, how many rows it has, and their hash.

    A local set is not named, and neither are its configuration and split, because they are file names, too: the name
    of a person who asks to be forgotten may be part of them. The hash identifies the set.
    """
    names = ("a local file", None, None) if Path(path).exists() else (path, name, split)
    return {
        **dict(zip(("source", "name", "split"), names, strict=True)),
        "rows": len(rows),
        "sha256": rows_sha256(rows),
    }


def shown_name(path: str) -> str:
    """Return a model's name on the Hub, or only the last part of a path, so that it reveals nothing of the machine."""
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
        times: seconds of each stage in this process. Those of a resumed run are only of its last part.
        metrics: as in metrics.json.
        seeds: by name.
        device: kind of device.
        processes: how many processes shared the work.
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
    """Return what the run ran on: kinds and sizes, but not the name of the machine."""
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
    """Return the peak memory of this process in bytes: of the machine, if the system tells, and of each device."""
    import torch

    peaks = {f"cuda:{place}": torch.cuda.max_memory_allocated(place) for place in range(torch.cuda.device_count())}
    if sys.platform != "win32":
        import resource

        # macOS counts bytes, Linux kilobytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peaks["machine"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peaks
