"""Whether the data, the base, the adapter and the logs of a run are still those that its record.json describes."""

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
    """Return the hashes in a run's record: of its sets, "base", "adapter", and each file of `EVIDENCE`.

    Raises:
        InputError: there is no record, or the file is something else.
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
    """Raise `ValueError` for parts that no run has, and for hashes that are none."""
    evaluated = [name.removesuffix("_name") for name in EvalConfig.__dataclass_fields__ if name.endswith("_name")]
    for name, value in hashes.items():
        if name not in ("forget", "retain", "holdout", *evaluated, "base", START_ADAPTER, "adapter", *EVIDENCE):
            raise ValueError(f"a run has no part {name!r}")
        if not (isinstance(value, str) and _SHA256.fullmatch(value)) and (name, value) != ("base", None):
            raise ValueError(f"{value!r} is not the hash of {name}")


def _stream(values: Mapping[str, Any]) -> Stream:
    """Return how rows were drawn. The numbers are checked, because so many rows are read."""
    if any(type(value) is not int or value < 0 for value in values.values()):
        raise ValueError(f"{values!r} does not say how rows were drawn")
    return Stream(**values)


def verify(run: str | Path, base: str | None = None, **data: str | None) -> dict[str, dict[str, Any]]:
    """Compute a run's hashes again, and compare them with its record.

    Args:
        run: its folder.
        base: where the base model is now, if it is not where the run's configuration says.
        data: the same for `forget_data`, `retain_data`, `holdout_data` and `eval_data`.

    Returns:
        {part: {"status", "recorded" and "found" hash, and the "reason" if it was not found}}. The parts are those of
        `recorded_hashes`.

    Raises:
        InputError: a folder without record or configuration.
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
                raise FileNotFoundError(f"{model.model_name_or_path} is no adapter")
            return adapter_sha256(folder)
        if part == "adapter":
            return adapter_sha256(Path(run) / ADAPTER)
        if part in EVIDENCE:
            return file_sha256(Path(run) / part)
        if part.startswith("eval_"):
            assert evaluation.eval_data is not None  # otherwise the record has no such part
            configuration = getattr(evaluation, f"{part}_name")
            return rows_sha256(load_records(evaluation.eval_data, configuration, argument="eval_data"))
        settings = stopping if part == "holdout" else sets
        return rows_sha256(load_set(settings, part, stream if part == "retain" else None, check=False))

    return {part: _compared(value, partial(compute, part), _flag(part)) for part, value in recorded.items()}


def _flag(part: str) -> str | None:
    """Return the flag that says where a part is now. The adapter and the logs are always in the run's folder."""
    if part in ("adapter", START_ADAPTER, *EVIDENCE):
        return None
    return "--base" if part == "base" else "--eval_data" if part.startswith("eval_") else f"--{part}_data"


def _present_base(model: ModelConfig) -> str:
    """Return the hash of the base's weights.

    Raises:
        OSError: there are none.
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
    """Raise `InputError` unless the run's adapter is the one in its record, in files of its own.

    Whoever publishes it would otherwise publish what was not measured, or files that a link in the folder leads to.
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


def _base_hash(model: ModelConfig) -> str | None:
    base = source_of(model).base
    return base_sha256(base.model_name_or_path, base.model_revision)


def check_base(run: str, model: ModelConfig, argument: str) -> None:
    """Raise `InputError` if the base's weights are not those that the run's adapter was made for.

    Names and shapes cannot show this, and PEFT loads the adapter of another model without a warning. Runs of earlier
    versions have no record, and cannot be checked.
    """
    if not (Path(run) / RECORD).exists():
        return
    recorded = recorded_hashes(run)["base"]
    if recorded is not None and _base_hash(model) != recorded:
        reason = f"its weights are not those that the adapter in {run} was made for"
        fix = "name the model of that run; `unlora verify` says what has changed"
        raise InputError(Problem(argument, model.model_name_or_path, reason, fix))
