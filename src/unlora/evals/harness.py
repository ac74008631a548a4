"""Evaluate a loaded model on tasks of lm-evaluation-harness (Gao et al.).

WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU are multiple choice: the model's answer is the choice whose letter is
most likely. Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.common.errors import InputError, Problem, raise_if
from unlora.settings import TaskSettings

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# The harness names metrics "metric,filter", where the filter post-processes the answers. "none" leaves them unchanged.
_NO_FILTER = ",none"


@dataclass(frozen=True)
class Tasks:
    """Tasks of the harness with their data.

    Args:
        manager: the harness's task manager.
        items: the tasks and groups that the user named.
        single: all single tasks by name, including those of groups.
    """

    manager: Any
    items: list[Any]
    single: Mapping[str, Any]


def load_tasks(settings: TaskSettings) -> Tasks:
    """Load the tasks and their data. This needs no model, so that wrong tasks are refused before a model is loaded.

    Raises:
        InputError: settings out of range, lm-evaluation-harness is not installed, unknown tasks, a task named twice,
            data that cannot be loaded, or questions that do not have the columns which the task reads.
    """
    raise_if(settings.problems())
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        fix = "install it: pip install 'unlora[wmdp]'"
        raise InputError(Problem("tasks", settings.tasks, "lm-evaluation-harness is not installed", fix)) from error
    manager, found = _loaded(TaskManager, settings)
    raise_if(problem for name, task in found["tasks"].items() for problem in _wrong_schema(name, task))
    groups = found.get("groups", {})
    inner = {id(part) for group in groups.values() for part in (*group.get_all_tasks(), *group.get_all_groups())}
    items = [item for item in (*groups.values(), *found["tasks"].values()) if id(item) not in inner]
    return Tasks(manager, items, found["tasks"])


def _loaded(make_manager: Callable[..., Any], settings: TaskSettings) -> tuple[Any, dict[str, Any]]:
    """Return the harness's task manager, and the tasks and groups that it loads for the names in the settings."""
    names = list(dict.fromkeys(settings.tasks))
    # The harness has thousands of task files, which take seconds to read. The user's own tasks may not need them.
    manager = make_manager(include_path=settings.include_path, include_defaults=False)
    groups = [name for name in names if name in manager.all_groups]
    all_found = set(names) <= set(manager.all_tasks)
    if all_found and groups:
        with suppress(Exception):  # fails if a group contains tasks of the harness
            return manager, manager.load(names)
    if not all_found or groups:
        manager = make_manager(include_path=settings.include_path)
    known = set(manager.all_tasks)
    raise_if(_unknown_task(name, known) for name in names if name not in known and not Path(name).is_file())
    try:
        return manager, manager.load(names)
    except Exception as error:  # loading a task may run its own code, which may raise anything
        reason = f"the harness cannot load them ({type(error).__name__}: {error})"
        fix = "check the names, the files and the network, and name each task once: alone or through its group"
        raise InputError(Problem("tasks", settings.tasks, reason, fix)) from error


def asked_rows(tasks: Tasks) -> Iterator[dict[str, Any]]:
    """Yield {"task", "text", "choices" (or None), "right" (the right answer)} of each question."""
    for name, task in sorted(tasks.single.items()):
        for row in task.eval_docs:
            choices = task.doc_to_choice(row) if task.OUTPUT_TYPE == "multiple_choice" else None
            right = task.doc_to_target(row)
            yield {"task": name, "text": task.doc_to_text(row), "choices": choices, "right": right}


def _unknown_task(name: str, known: Iterable[str]) -> Problem:
    # Not `unknown_name`, which lists all known names: there are thousands.
    close = difflib.get_close_matches(name, known, n=3)
    fix = f"did you mean {' or '.join(map(repr, close))}" if close else "see the list of `lm-eval ls tasks`"
    return Problem("tasks", name, "neither a task of the harness nor a YAML file", fix)


def _wrong_schema(name: str, task: ConfigurableTask) -> Iterator[Problem]:
    """Yield a problem for the first row without choices or without a right one. The harness would count it as wrong."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    fix = "check the columns of the task's data, and how the task's YAML file reads them"
    for index, row in enumerate(task.eval_docs):
        choices, right = task.doc_to_choice(row), task.doc_to_target(row)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            yield Problem(f"{name}[{index}]", choices, "its choices are not texts", fix)
            return
        if isinstance(right, int) and not 0 <= right < len(choices):
            yield Problem(f"{name}[{index}]", right, f"the right choice is none of the {len(choices)} choices", fix)
            return


def evaluate_tasks(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerFast, tasks: Tasks, settings: TaskSettings
) -> dict[str, Any]:
    """Run the tasks in this process on the model as it is, including its adapters.

    Args:
        model: a causal LM, with or without adapters.
        tokenizer: its tokenizer.
        tasks: what `load_tasks` returned.
        settings: number of few-shot examples, number of questions, and batch size.

    Returns:
        {"lm_eval": version, "num_fewshot", "limit", "asked": [task or file named by the user], "tasks": {task: {metric:
        value, metric_stderr: its standard error, "n": number of questions, "version": version of the task}}}. Groups of
        tasks are included, as well as each of their tasks. Values that are not finite numbers are None.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    # The harness ignores the batch size of `simple_evaluate` if the model is already loaded.
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    results = lm_eval.simple_evaluate(
        model=wrapped,
        tasks=tasks.items,
        task_manager=tasks.manager,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        log_samples=False,
    )
    rows = {**results["results"], **results.get("groups", {})}
    return {
        "lm_eval": lm_eval.__version__,
        "num_fewshot": settings.num_fewshot,
        "limit": settings.limit,
        "asked": settings.tasks,
        "tasks": {name: _row(name, values, results) for name, values in rows.items()},
    }


def _row(name: str, values: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of a task or a group under their names without the filter."""
    metrics = {key.removesuffix(_NO_FILTER): value for key, value in values.items() if "," in key}
    return {
        **{key: _finite(value) for key, value in metrics.items()},
        "n": sum(results["n-samples"][task]["effective"] for task in _tasks_of(name, results["group_subtasks"])),
        "version": results["versions"].get(name),
    }


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _tasks_of(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks of a group, or the task itself."""
    parts = groups.get(name) or []
    return [task for part in parts for task in _tasks_of(part, groups)] or [name]
