"""The stages of a request in its folder: lock it for one process, and reuse what was made from the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlora.common import plugins
from unlora.common.distributed import main_only, on_main
from unlora.common.locks import writing_to
from unlora.models.hashes import adapter_sha256, base_sha256, file_sha256, sets_sha256
from unlora.pipeline.job import Job
from unlora.pipeline.prepare import retain_stream
from unlora.runs.folder import ADAPTER
from unlora.runs.record import describe_inputs
from unlora.runs.stages import Stages, json_sha256, tokenizer_sha256

# Entries of a model's configuration that depend on where it was saved and by which version, not on the model.
_NOT_CONTENT = ("_name_or_path", "transformers_version")


@main_only
def describe_job(job: Job) -> dict[str, Any]:
    """Return the entries of the record on the data, the base model and its chat template."""
    request, rows = job.request, job.rows
    parts = (request.model, request.data, request.stopping, request.evaluation)
    inputs = describe_inputs(*parts, rows.forget, rows.retain, job.sets, retain_stream(request, len(rows.forget)))
    return inputs | ({"chat": job.text_format.template.described()} if job.text_format.is_chat else {})


@contextmanager
def locked(job: Job, inputs: Mapping[str, Any]) -> Iterator[Job]:
    """Hold the lock of the job's folder, and yield the job with its finished stages. Nothing else is written yet.

    Args:
        job: the job.
        inputs: the result of `describe_job`.

    Raises:
        InputError: another process is writing to the folder, or its run was started with other settings, model or data.
    """
    request = job.request

    def take() -> Stages:
        stack.enter_context(writing_to(job.folder))
        return Stages(job.folder, request.settings(), _contents(job, inputs), request.args.resume_from_checkpoint)

    with ExitStack() as stack:
        yield replace(job, stages=on_main(take))


@main_only
def start(job: Job) -> None:
    """Begin to write to the folder: record the inputs of the stages, and delete what a killed process left behind."""
    assert job.stages is not None
    job.stages.start()


def _contents(job: Job, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return {argument: hashes that identify the contents it names}, for everything that a request reads."""
    request, data = job.request, inputs["data"]
    config = {name: value for name, value in job.model.config.to_dict().items() if name not in _NOT_CONTENT}
    model = {"weights": inputs["base"]["sha256"], "config": json_sha256(config)}
    logs = {"original_log": job.original_log, "retrained": job.retrained_log}
    other = job.retrained_model and base_sha256(job.retrained_model.model_name_or_path)
    on, importance = request.model.on, request.importance.importance_file
    return {
        "model_name_or_path": {**model, "tokenizer": tokenizer_sha256(job.text_format.tokenizer)},
        "on": on and adapter_sha256(Path(on) / ADAPTER),
        **{f"{name}_data": data[name]["sha256"] for name in ("forget", "retain", "holdout") if name in data},
        "eval_data": sets_sha256(job.sets),
        **({"retrained": other} if other else {}),
        **{name: json_sha256(log) for name, log in logs.items() if log is not None},
        "importance_file": importance and file_sha256(importance),
        "plugin": plugins.hashes_of(request.choices),
        "device": request.args.device.type,
        "num_processes": request.args.world_size,
    }
