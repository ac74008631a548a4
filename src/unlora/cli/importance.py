"""`unlora importance`: the importance alone, for `--importance_file` of later runs."""

from __future__ import annotations

from pathlib import Path

from unlora.cli.output import Answer
from unlora.cli.unlearn import SETTINGS, TRAINING, request_from

EXAMPLE = "unlora importance --model_name_or_path my-model --forget_data f.jsonl --retain_data r.jsonl --output_dir imp"
__all__ = ["EXAMPLE", "SETTINGS", "TRAINING", "run"]


def run(argv: list[str]) -> Answer:
    """Estimates the importance into `output_dir`."""
    from unlora.common.errors import InputError, Problem
    from unlora.importance import INITIALISERS
    from unlora.pipeline.importance import importance_for
    from unlora.pipeline.prepare import prepare
    from unlora.runs.folder import IMPORTANCE

    request = request_from(argv, "importance", EXAMPLE)
    init = request.importance.init
    if init in INITIALISERS and not INITIALISERS[init].uses_data:
        raise InputError(Problem("init", init, "it measures nothing", "run `unlora unlearn` with it at once"))
    importance_for(prepare(request))
    return Answer({}, lambda: None, Path(request.args.output_dir) / IMPORTANCE)
