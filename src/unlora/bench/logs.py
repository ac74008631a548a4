"""Evaluation logs of the original and the retrained models, which are computed once and shared by the cells."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from unlora.benchmarks import Benchmark
from unlora.common import plugins
from unlora.common.errors import InputError, Problem
from unlora.common.files import write_text
from unlora.common.progress import is_quiet
from unlora.data.sources import Record, load_set
from unlora.models.hashes import base_sha256, rows_sha256
from unlora.runs.folder import settings_of
from unlora.settings import DataConfig, ModelConfig

References = dict[str, Path]


@dataclass(frozen=True)
class Measurement:
    """An evaluation of any model.

    Args:
        benchmark: the benchmark.
        settings: settings of the evaluation.
    """

    benchmark: Benchmark
    settings: Mapping[str, Any]

    @property
    def command(self) -> list[str]:
        """The command that writes a log. It runs in a separate process, so that the GPU memory is freed afterwards."""
        return ["evaluate"] if self.benchmark.evaluated_by_unlearn else ["evaluate", "--benchmark", self.benchmark.name]

    def rows(self) -> Iterable[Record]:
        """Return the rows that the model is evaluated on."""
        return self.benchmark.rows(self.benchmark.load(settings_of(self.benchmark.settings, self.settings)))


class SharedLogs:
    """The logs in the folder of a bench. Their names are hashes of everything that they depend on.

    This includes the settings, the model's weights and the evaluated rows. Weights and rows are hashed only once, so
    they must not change while the bench runs.

    Args:
        folder: folder of the bench.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[str, str | None] = {}

    def references(
        self, measurement: Measurement, model: ModelConfig, retrained: str | None, original: str | None = None
    ) -> References:
        """Return the logs of the "original" model and, if there is one, of the "retrained" model.

        Args:
            measurement: how the models are evaluated.
            model: the original model.
            retrained: a log (.json) of the retrained model, or its folder.
            original: a log of the original model. Without one, the model is evaluated.

        Raises:
            InputError: a log does not exist, or as for `log`.
        """
        logs = {}
        if original is not None:
            logs["original"] = _existing("original_log", original, "name a log, or remove it to evaluate the model")
        if retrained is not None and retrained.endswith(".json"):
            logs["retrained"] = _existing("retrained", retrained, "name a log, or the retrained model")
        elif retrained is not None:
            logs["retrained"] = self.log(measurement, replace(model, model_name_or_path=retrained))
        return logs if original is not None else {"original": self.log(measurement, model), **logs}

    def log(self, measurement: Measurement, model: ModelConfig) -> Path:
        """Return the log of a model, after evaluating the model if the log does not exist.

        Raises:
            InputError: rows or weights cannot be read, or the evaluation failed. Its errors are on the terminal.
        """
        command, settings = measurement.command, {**asdict(model), **measurement.settings}
        path = self.folder / "logs" / f"{_key([command, settings, *self._contents(measurement, model)])}.json"
        if not path.exists():
            config = flags_of(path)
            write_text(config, yaml.safe_dump(settings, sort_keys=False))
            argv = [sys.executable, "-m", "unlora", *command, "--config", str(config), "--log", str(path)]
            argv += plugins.flags()
            # The command's table must not appear in the output of the bench, which may be JSON.
            if subprocess.run([*argv, *(["--quiet"] if is_quiet() else [])], stdout=subprocess.DEVNULL).returncode:
                reason, fix = f"`unlora {' '.join(command)}` failed for it", "see the error above"
                raise InputError(Problem("model", model.model_name_or_path, reason, fix))
        return path

    def _contents(self, measurement: Measurement, model: ModelConfig) -> list[str | None]:
        """Return the hashes of the evaluated rows, of the weights, and of the benchmark's code if it is a plugin."""
        rows = self._once([measurement.command, measurement.settings], lambda: rows_sha256(measurement.rows()))
        code = plugins.hashes_of({"benchmark": measurement.benchmark.name})
        return [rows, self._weights(model), *code]

    def inputs(self, model: ModelConfig, data: DataConfig) -> dict[str, str | None]:
        """Return {argument: hash of the model or rows that it names}, for the inputs of a cell except streamed rows."""
        names = ["forget"] if data.streaming else ["forget", "retain"]
        rows = {
            f"{name}_data": self._once(
                [getattr(data, f"{name}_{part}") for part in ("data", "name", "split")],
                partial(_set_sha256, data, name),
            )
            for name in names
        }
        return {"model_name_or_path": self._weights(model), **rows}

    def _weights(self, model: ModelConfig) -> str | None:
        return self._once([model.model_name_or_path, model.model_revision], lambda: weights_sha256(model))

    def _once(self, name: object, compute: Callable[[], str | None]) -> str | None:
        key = _key(name)
        if key not in self._hashes:
            self._hashes[key] = compute()
        return self._hashes[key]


def _existing(argument: str, name: str, fix: str) -> Path:
    if not Path(name).is_file():
        raise InputError(Problem(argument, name, "no such file", fix))
    return Path(name)


def flags_of(log: Path) -> Path:
    """Return the file with the settings of a log's evaluation. A log that the user provides has no such file."""
    return log.with_suffix(".flags.yaml")


def weights_sha256(model: ModelConfig) -> str | None:
    """Return `base_sha256` of the model, and raise `InputError` if its weights cannot be read."""
    try:
        return base_sha256(model.model_name_or_path, model.model_revision)
    except (OSError, ValueError, SafetensorError) as error:
        reason = f"its weights cannot be read ({str(error).splitlines()[0]})"
        fix = "give a model folder or a model's name on the hub"
        raise InputError(Problem("model", model.model_name_or_path, reason, fix)) from error


def _set_sha256(data: DataConfig, name: str) -> str:
    return rows_sha256(load_set(data, name))


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
