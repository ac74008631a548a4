"""`unlora importance`: the importance alone, for `--importance_file` of later runs."""

from __future__ import annotations

from pathlib import Path

from unlora.cli.output import Answer
from unlora.cli.unlearn import SETTINGS, TRAINING, request_from

EXAMPLE = "unlora importance --model_name_or_path my-model --forget_data f.jsonl --retain_data r.jsonl --output_dir imp"
__all__ = ["EXAMPLE", "SETTINGS", "TRAINING", "run"]


def run(argv: list[str]) -> Answer:
    """Estimates the importance into `output_dir`."""
    from unlora.distributed import together
    from unlora.errors import InputError, Problem
    from unlora.initialisers import INITIALISERS
    from unlora.pipeline import IMPORTANCE, importance_for, prepare

    request = request_from(argv, "importance", EXAMPLE)
    init = request.importance.init
    with together():
        request.check()
        if INITIALISERS[init].centred is None:
            raise InputError(Problem("init", init, "it measures nothing", "run `unlora unlearn` with it at once"))
        materials = prepare(request)
    path = Path(request.args.output_dir) / IMPORTANCE
    importance_for(request, materials, path)
    return Answer({}, lambda: None, path)
