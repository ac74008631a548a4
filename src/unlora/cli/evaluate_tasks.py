"""`unlora evaluate-tasks`: WMDP, MMLU or any other task of lm-evaluation-harness."""

from __future__ import annotations

import os

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.common.errors import Problem, raise_if
from unlora.runs.folder import SCORES
from unlora.settings import ModelConfig, ReportedConfig, TaskSettings

EXAMPLE = "unlora evaluate-tasks --on run --tasks wmdp_bio wmdp_cyber mmlu"


SETTINGS = (ModelConfig, ReportedConfig, TaskSettings)


def several_processes() -> list[Problem]:
    """The problem of a job of several processes: the harness does not share its work with a model that is loaded."""
    count = int(os.environ.get("WORLD_SIZE", 1))
    reason, fix = "each would ask all questions", "start it without `accelerate launch`"
    return [Problem("processes", count, reason, fix)] if count > 1 else []


def run(argv: list[str]) -> Answer:
    """Runs the tasks, writes the result, and shows it."""
    from unlora.cli.tables import print_tasks
    from unlora.common.files import write_json
    from unlora.evals.harness import evaluate_tasks, load_tasks
    from unlora.pipeline.loading import load_target
    from unlora.pipeline.request import model_problems

    model_config, target, settings = parse(SETTINGS, argv, "evaluate-tasks", EXAMPLE)
    target.log_in_run(model_config, SCORES["unlearned"])
    problems = [*model_problems(model_config), *target.target_problems(model_config), *settings.problems()]
    raise_if([*problems, *several_processes()])
    tasks = load_tasks(settings)
    model, tokenizer = load_target(model_config, target)
    result = evaluate_tasks(model, tokenizer, tasks, settings)
    write_json(target.log, result)
    return Answer(result, lambda: print_tasks(result), target.log)
