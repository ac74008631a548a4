"""`unlora importance`: estimate the importance without training, for `--importance_file` of later runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unlora.cli.output import Answer
from unlora.cli.unlearn import REQUEST as SETTINGS

EXAMPLE = "unlora importance --model_name_or_path my-model --forget_data f.jsonl --retain_data r.jsonl --output_dir imp"
FIRST = {
    "model and data": ("model_name_or_path", "forget_data", "retain_data", "output_dir", "on"),
    "the estimate": ("init", "centred", "smoothing", "retain_samples", "importance_batch_size"),
}
__all__ = ["EXAMPLE", "FIRST", "SETTINGS", "run"]


def run(*settings: Any) -> Answer:
    """Estimate the importance, and write it to `output_dir`."""
    from unlora.common.errors import InputError, Problem
    from unlora.importance import INITIALISERS
    from unlora.pipeline.importance import importance_for
    from unlora.pipeline.prepare import prepare
    from unlora.pipeline.request import Request
    from unlora.pipeline.stages import describe_job, locked, start
    from unlora.runs.folder import IMPORTANCE
    from unlora.settings.names import AUTO

    # This command only measures the importance, so the default is an initialiser that needs it, whatever the loss.
    parts = [replace(part, init="vila") if getattr(part, "init", None) == AUTO else part for part in settings]
    request = Request(*parts)
    init = request.importance.init
    if init in INITIALISERS and not INITIALISERS[init].uses_data:
        raise InputError(Problem("init", init, "it measures no importance", "run `unlora unlearn` with it directly"))
    job = prepare(request)
    with locked(job, describe_job(job)) as job:
        start(job)
        importance_for(job)
    return Answer({}, lambda: None, job.folder / IMPORTANCE)
