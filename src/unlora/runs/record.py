"""record.json: what a run was made from, with what, where, and what came out; and whether that is still so.

It names no secret, no user, no place on the machine and no local data: of a base's path the last part is kept.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from unlora.common.errors import InputError, Problem
from unlora.common.files import write_json
from unlora.common.version import __version__
from unlora.data.sources import HUB_ID, Record, Stream, load_records, load_set
from unlora.models.hashes import adapter_sha256, base_sha256, file_sha256, rows_sha256
from unlora.runs.command import repeat_command
from unlora.runs.folder import (
    ADAPTER,
    EVALUATIONS,
    FORGOTTEN,
    METRICS,
    RECORD,
    SAMPLES,
    saved_settings,
    settings_of,
)
from unlora.settings import DataConfig, EvalConfig, ModelConfig, StoppingConfig

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")
# What a run leaves as evidence, beside its adapter.
EVIDENCE = (*EVALUATIONS.values(), METRICS, SAMPLES, FORGOTTEN)
# What stands for the name of a local set.
LOCAL = "a local file"
# The metrics of metrics.json that are kept: not the log of every step.
RECORDED = ("original", "unlearned", "compression")
UNCHANGED, CHANGED, NOT_FOUND = "unchanged", "changed", "not found"


class Clock:
    """Seconds that each stage took, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, function: Callable[..., T], *args: Any) -> T:
        """What the function returns, with the time that it took noted as that of the stage."""
        started = time.monotonic()
        result = function(*args)
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
    """Hashes of what a run works on, taken before it starts, so that they are those of what it read.

    Args:
        model, data, stopping, evaluation: the run's settings.
        forget: the forget set.
        retain: the retain set, as far as it was read.
        evaluated: the evaluated rows of `eval_data`, by set.
        stream: how the retain set was drawn if it was not read whole; its hash is then of what was drawn.
    """
    parts = {
        "forget": described(data.forget_data, data.forget_name, data.forget_split, forget),
        "retain": described(data.retain_data, data.retain_name, data.retain_split, retain),
    }
    if stream is not None:
        parts["retain"]["stream"] = asdict(stream)
    if stopping.holdout_data:
        place = stopping.holdout_data, stopping.holdout_name, stopping.holdout_split
        parts["holdout"] = described(*place, load_set(stopping, "holdout"))
    if evaluation.eval_data:
        for name, rows in evaluated.items():
            config = getattr(evaluation, f"eval_{name}_name")
            parts[f"eval_{name}"] = described(evaluation.eval_data, config, None, rows)
    base = {
        "name": shown_name(model.model_name_or_path),
        "revision": model.model_revision,
        "sha256": base_sha256(model.model_name_or_path, model.model_revision),
    }
    return {"data": parts, "base": base}


def described(path: str, name: str | None, split: str | None, rows: Sequence[Record]) -> dict[str, Any]:
    """A set: where on the hub it is from, how many rows it has, and their hash.

    Local files are not named, nor a configuration or split in a folder, which are files too: whoever asks to be
    forgotten may be in the name. The hash tells which set it was.
    """
    names = (LOCAL, None, None) if Path(path).exists() else (path, name, split)
    place = dict(zip(("source", "name", "split"), names, strict=True))
    return {**place, "rows": len(rows), "sha256": rows_sha256(rows)}


def shown_name(path: str) -> str:
    """A name on the hub as it is; of a path its last part alone, which tells nothing of the machine."""
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
    """Write the record of a run that has all its other files except the report.

    Args:
        folder: the run's.
        inputs: from `describe_inputs`.
        times: seconds by stage, of this process. A resumed run has those of its last part only, and says so.
        metrics: as in metrics.json.
        seeds: by name.
        device: kind of device.
        processes: how many shared the work.
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
        "versions": versions(),
        "seeds": seeds,
        "hardware": hardware(device, processes),
        "times": times,
        "peak_memory_bytes": peak_memory(),
        "metrics": {name: metrics[name] for name in RECORDED if name in metrics},
    }
    write_json(folder / RECORD, record)


def versions() -> dict[str, str]:
    """Of Python, of this library, and of what it works with."""
    own = {"python": platform.python_version(), "unlora": __version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def hardware(device: str, processes: int) -> dict[str, Any]:
    """What the run ran on: kinds and sizes, not the machine's name."""
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


def peak_memory() -> dict[str, int]:
    """The most memory that this process had so far: of the machine (where the system tells), and of each device."""
    import torch

    peaks = {f"cuda:{place}": torch.cuda.max_memory_allocated(place) for place in range(torch.cuda.device_count())}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["machine"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peaks


def recorded_hashes(run: str | Path) -> dict[str, str | None]:
    """The hashes in a run's record: of "forget", "retain", "base" and "adapter".

    Raises:
        InputError: there is no record, or it is none.
    """
    try:
        record = json.loads((Path(run) / RECORD).read_text(encoding="utf-8"))
        parts = {**record["data"], "base": record["base"], "adapter": record["adapter"]}
        return {name: part["sha256"] for name, part in parts.items()} | record.get("files", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its {RECORD} cannot be read ({type(error).__name__}: {error})"
        raise InputError(Problem("RUN", str(run), reason, "name the folder of a finished `unlora unlearn`")) from error


def recorded_stream(run: str | Path) -> Stream | None:
    """How the retain set of a run was drawn, which has a record; None if it was read whole."""
    record = json.loads((Path(run) / RECORD).read_text(encoding="utf-8"))
    stream = record["data"]["retain"].get("stream")
    return None if stream is None else Stream(**stream)


def verify(run: str | Path, base: str | None = None, **data: str | None) -> dict[str, dict[str, Any]]:
    """Recomputes a run's hashes.

    Args:
        run: its folder.
        base: where the base model is now, if elsewhere than the run's configuration says.
        data: likewise `forget_data`, `retain_data`, `holdout_data` and `eval_data`.

    Returns:
        {part: {"status", "recorded" and "found" hash, and the "reason" why it was not found}}. The parts are those of
        the record: its sets, "base", "adapter", and each file of `EVIDENCE`.

    Raises:
        InputError: a folder without record or configuration.
    """
    recorded, drawn, values = recorded_hashes(run), recorded_stream(run), saved_settings(str(run), "RUN")
    moved = {name: value for name, value in {**data, "model_name_or_path": base}.items() if value is not None}
    kinds = (DataConfig, StoppingConfig, EvalConfig, ModelConfig)
    sets, stopping, evaluation, model = (settings_of(kind, {**values, **moved}) for kind in kinds)

    def rows_of(config: Any, part: str, stream: Stream | None = None) -> str:
        path, name, split = (getattr(config, f"{part}_{field}") for field in ("data", "name", "split"))
        return rows_sha256(load_records(path, name, split, argument=f"{part}_data", stream=stream))

    def found(part: str) -> tuple[Callable[[], str], str | None]:
        """How the part's hash is computed, and the flag that says where it is now."""
        if part == "base":
            return lambda: present_base(model), "--base"
        if part == "adapter":
            return lambda: adapter_sha256(Path(run) / ADAPTER), None
        if part in EVIDENCE:
            return lambda: file_sha256(Path(run) / part), None
        if part.startswith("eval_"):
            name = getattr(evaluation, f"{part}_name")
            load = partial(load_records, evaluation.eval_data, name, argument="eval_data")
            return lambda: rows_sha256(load()), "--eval_data"
        config = stopping if part == "holdout" else sets
        return lambda: rows_of(config, part, drawn if part == "retain" else None), f"--{part}_data"

    return {part: compared(value, *found(part)) for part, value in recorded.items()}


def present_base(model: ModelConfig) -> str:
    """The hash of the base's weights.

    Raises:
        OSError: there are none.
    """
    name = model.model_name_or_path
    here = Path(name).is_dir()
    sha256 = base_sha256(name, model.model_revision) if here or HUB_ID.fullmatch(name) else None
    if sha256 is None:
        reason = "it has no safetensors" if here else "no such folder, nor a model with safetensors on the hub"
        raise FileNotFoundError(f"{name}: {reason}")
    return sha256


def compared(recorded: str | None, compute: Callable[[], str], flag: str | None) -> dict[str, Any]:
    """What has become of one part of a run."""
    from safetensors import SafetensorError

    try:
        found = compute()
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".") + (f"; say where it is now by {flag}" if flag else "")
        return {"status": NOT_FOUND, "recorded": recorded, "found": None, "reason": reason}
    return {"status": UNCHANGED if found == recorded else CHANGED, "recorded": recorded, "found": found}


def check_base(run: str, model: ModelConfig, argument: str) -> None:
    """Raises `InputError` where the base's weights are not those that the run's adapter was made for.

    Names and shapes say nothing of that, and the adapter of another model loads without a word. A run without a record
    (of an earlier version) cannot be checked.
    """
    if not (Path(run) / RECORD).exists():
        return
    recorded = recorded_hashes(run)["base"]
    if recorded is not None and base_sha256(model.model_name_or_path, model.model_revision) != recorded:
        reason = f"its weights are not those that the adapter in {run} was made for"
        fix = "name the model of that run; `unlora verify` says what has changed"
        raise InputError(Problem(argument, model.model_name_or_path, reason, fix))
