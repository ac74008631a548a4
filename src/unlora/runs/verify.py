"""Check whether the data, the base model, the adapter and the logs of a run still match its record.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem, from_elsewhere
from unlora.common.reading import read_json
from unlora.data.sources import HUB_ID, Stream, load_records, load_set
from unlora.models.adapter_files import check_regular
from unlora.models.folder import is_adapter
from unlora.models.hashes import adapter_sha256, base_sha256, file_sha256, rows_sha256
from unlora.models.source import source_of
from unlora.runs.folder import ADAPTER, EVIDENCE, RECORD, START_ADAPTER, checked_settings, located_settings
from unlora.settings import DataConfig, EvalConfig, ModelConfig, StoppingConfig

_SHA256 = re.compile("[0-9a-f]{64}")
UNCHANGED, _CHANGED, _NOT_FOUND = "unchanged", "changed", "not found"


def recorded_hashes(run: str | Path) -> dict[str, str | None]:
    """Return the hashes in a run's record, by part: the name of a dataset, "base", "adapter", or a file of `EVIDENCE`.

    Raises:
        InputError: the record is missing or invalid.
    """
    return _read_record(run)[0]


def _read_record(run: str | Path) -> tuple[dict[str, str | None], Stream | None]:
    """Return the recorded hashes, and how the rows of a streamed retain set were drawn."""
    fix = "name the folder of a finished `unlora unlearn`"
    with from_elsewhere("RUN", str(run), f"its {RECORD} cannot be read", fix):
        record = read_json(Path(run) / RECORD)
        parts = {**record["data"], "base": record["base"], "adapter": record["adapter"]}
        parts |= {START_ADAPTER: record[START_ADAPTER]} if START_ADAPTER in record else {}
        hashes = {name: part["sha256"] for name, part in parts.items()} | record.get("files", {})
        stream = record["data"]["retain"].get("stream")
        _check_hashes(hashes)
        return hashes, None if stream is None else _stream(stream)


def _check_hashes(hashes: Mapping[str, Any]) -> None:
    """Raise `ValueError` for unknown parts and for values that are not SHA-256 hashes."""
    evaluated = [name.removesuffix("_name") for name in EvalConfig.__dataclass_fields__ if name.endswith("_name")]
    for name, value in hashes.items():
        if name not in ("forget", "retain", "holdout", *evaluated, "base", START_ADAPTER, "adapter", *EVIDENCE):
            raise ValueError(f"a run has no part {name!r}")
        if not (isinstance(value, str) and _SHA256.fullmatch(value)) and (name, value) != ("base", None):
            raise ValueError(f"{value!r} is not the hash of {name}")


def _stream(values: Mapping[str, Any]) -> Stream:
    """Return how the rows of a stream were drawn. The values are checked, since they set how many rows are read."""
    if any(type(value) is not int or value < 0 for value in values.values()):
        raise ValueError(f"{values!r} does not say how rows were drawn")
    return Stream(**values)


def verify(run: str | Path, base: str | None = None, **data: str | None) -> dict[str, dict[str, Any]]:
    """Compute a run's hashes again, and compare them with its record.

    Args:
        run: the run's folder.
        base: the current path of the base model, if it differs from the run's configuration.
        data: the current paths of `forget_data`, `retain_data`, `holdout_data` and `eval_data`, if they differ.

    Returns:
        {part: {"status", "recorded" and "found" hash, and the "reason" if it was not found}}. The parts are those of
        `recorded_hashes`.

    Raises:
        InputError: the run has no record or no configuration.
    """
    (recorded, stream), values = _read_record(run), located_settings(str(run), "RUN") | {"trust_remote_code": False}
    values |= {name: value for name, value in {**data, "model_name_or_path": base}.items() if value is not None}
    sets, stopping = checked_settings(DataConfig, values, run), checked_settings(StoppingConfig, values, run)
    evaluation, model = checked_settings(EvalConfig, values, run), checked_settings(ModelConfig, values, run)

    def compute(part: str) -> str:
        if part == "base":
            return _present_base(model)
        if part == START_ADAPTER:
            folder = source_of(model).adapter
            if folder is None:
                raise FileNotFoundError(f"{model.model_name_or_path} is not an adapter")
            return adapter_sha256(folder)
        if part == "adapter":
            return adapter_sha256(Path(run) / ADAPTER)
        if part in EVIDENCE:
            return file_sha256(Path(run) / part)
        if part.startswith("eval_"):
            if evaluation.eval_data is None:
                raise FileNotFoundError("the run's configuration has no eval_data")
            configuration = getattr(evaluation, f"{part}_name")
            return rows_sha256(load_records(evaluation.eval_data, configuration, argument="eval_data"))
        settings = stopping if part == "holdout" else sets
        return rows_sha256(load_set(settings, part, stream if part == "retain" else None, check=False))

    return {part: _compared(value, partial(compute, part), _flag(part)) for part, value in recorded.items()}


def _flag(part: str) -> str | None:
    """Return the flag for the current path of a part, or None. Files in the run's folder need no flag."""
    if part in ("adapter", START_ADAPTER, *EVIDENCE):
        return None
    return "--base" if part == "base" else "--eval_data" if part.startswith("eval_") else f"--{part}_data"


def _present_base(model: ModelConfig) -> str:
    """Return the hash of the base model's weights.

    Raises:
        OSError: the model was not found, or has no safetensors.
    """
    base = source_of(model).base if is_adapter(Path(model.model_name_or_path)) else model
    name = base.model_name_or_path
    here = Path(name).is_dir()
    sha256 = base_sha256(name, base.model_revision) if here or HUB_ID.fullmatch(name) else None
    if sha256 is None:
        reason = "it has no safetensors" if here else "there is no such folder, and no such model on the Hub"
        raise FileNotFoundError(f"{name}: {reason}")
    return sha256


def _compared(recorded: str | None, compute: Callable[[], str], flag: str | None) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        found = compute()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        fix = f"; say where it is now with {flag}" if flag else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + fix
        return {"status": _NOT_FOUND, "recorded": recorded, "found": None, "reason": reason}
    return {"status": UNCHANGED if found == recorded else _CHANGED, "recorded": recorded, "found": found}


def check_recorded_adapter(run: str) -> None:
    """Raise `InputError` unless the run's adapter is the recorded one and consists of regular files.

    Otherwise an adapter could be published that was never evaluated, or files outside the folder that links point to.
    """
    from safetensors import SafetensorError

    recorded, folder = recorded_hashes(run)["adapter"], Path(run) / ADAPTER
    check_regular(folder, "RUN")
    fix = "put the adapter of that run back; `unlora verify` says what has changed"
    try:
        with from_elsewhere("RUN", str(folder), "it is not an adapter", fix):
            found = adapter_sha256(folder)
    except SafetensorError as error:
        raise InputError(Problem("RUN", str(folder), f"its weights are broken ({error})", fix)) from error
    if found != recorded:
        raise InputError(Problem("RUN", str(folder), f"it is not the adapter in the run's {RECORD}", fix))


def check_base(run: str, model: ModelConfig, argument: str) -> None:
    """Raise `InputError` if the run's adapter was made for a base model with other weights.

    Names and shapes cannot show this, and PEFT loads the adapter of another model without a warning. Runs of early
    versions have no record and cannot be checked.
    """
    if not (Path(run) / RECORD).exists():
        return
    recorded, base = recorded_hashes(run)["base"], source_of(model).base
    if recorded is not None and base_sha256(base.model_name_or_path, base.model_revision) != recorded:
        reason = f"its weights are not those that the adapter in {run} was made for"
        fix = "name the model of that run; `unlora verify` says what has changed"
        raise InputError(Problem(argument, model.model_name_or_path, reason, fix))
