"""Tasks of lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) on a loaded model.

WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU ask with four choices: the one whose letter is likeliest counts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem, raise_if
from unlora.settings import TaskSettings

# Metrics of a filter of the answers are called "metric,filter" there; this filter leaves them as they are.
NO_FILTER = ",none"


@dataclass(frozen=True)
class Tasks:
    """What `load_tasks` found.

    Args:
        manager: the harness's task manager.
        items: the tasks and groups that were asked for, with their data.
        single: by name every task, those of groups too.
    """

    manager: Any
    items: list[Any]
    single: Mapping[str, Any]


def load_tasks(settings: TaskSettings) -> Tasks:
    """The tasks and their data; needs no model, so that what cannot be evaluated is refused before one is loaded.

    Raises:
        InputError: settings out of range, lm-evaluation-harness is not installed, unknown tasks, a task twice, data
            that cannot be loaded, or questions of another schema than the task's.
    """
    raise_if(settings.problems())
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        fix = "install it: pip install 'unlora[wmdp]'"
        raise InputError(Problem("tasks", settings.tasks, "lm-evaluation-harness is not there", fix)) from error
    manager, found = _loaded(TaskManager, settings)
    raise_if(problem for name, task in found["tasks"].items() for problem in _wrong_schema(name, task))
    groups = found.get("groups", {})
    inner = {id(part) for group in groups.values() for part in (*group.get_all_tasks(), *group.get_all_groups())}
    items = [item for item in (*groups.values(), *found["tasks"].values()) if id(item) not in inner]
    return Tasks(manager, items, found["tasks"])


def _loaded(make_manager: Callable[..., Any], settings: TaskSettings) -> tuple[Any, dict[str, Any]]:
    """The harness's task manager, and what it loads for the names that were asked for."""
    names = list(dict.fromkeys(settings.tasks))
    if settings.include_path is not None:
        # Reading the harness's own thousands of task files takes seconds, and the tasks may need none of them.
        manager = make_manager(include_path=settings.include_path, include_defaults=False)
        if all(name in manager.all_tasks for name in names):
            with suppress(Exception):  # a group may have parts that the harness brings along
                return manager, manager.load(names)
    manager = make_manager(include_path=settings.include_path)
    known = set(manager.all_tasks)
    raise_if(_unknown_task(name, known) for name in names if name not in known and not Path(name).is_file())
    try:
        return manager, manager.load(names)
    except Exception as error:  # a task may read its data in any way
        reason = f"the harness cannot load them ({type(error).__name__}: {error})"
        fix = "check the names, the files and the network; name a task once, alone or in its group"
        raise InputError(Problem("tasks", settings.tasks, reason, fix)) from error


def asked_rows(tasks: Tasks) -> Iterator[dict[str, Any]]:
    """What a model is asked: of each question its task, the text, the right answer and the choices, if it has some."""
    for name, task in sorted(tasks.single.items()):
        for row in task.eval_docs:
            choices = task.doc_to_choice(row) if task.OUTPUT_TYPE == "multiple_choice" else None
            right = task.doc_to_target(row)
            yield {"task": name, "text": task.doc_to_text(row), "choices": choices, "right": right}


def _unknown_task(name: str, known: Iterable[str]) -> Problem:
    """The nearest names only: there are thousands."""
    close = difflib.get_close_matches(name, known, n=3)
    fix = f"did you mean {' or '.join(map(repr, close))}" if close else "`lm-eval ls tasks` lists all"
    return Problem("tasks", name, "neither a task of the harness nor a YAML file", fix)


def _wrong_schema(name: str, task: Any) -> Iterator[Problem]:
    """The first row without choices or without a right one; the harness would count it as answered wrongly."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    fix = "check the columns of the task's data, and what the task's YAML file makes of them"
    for place, row in enumerate(task.eval_docs):
        choices, right = task.doc_to_choice(row), task.doc_to_target(row)
        if not choices or not all(isinstance(choice, str) for choice in choices):
            yield Problem(f"{name}[{place}]", choices, "its choices are not texts", fix)
            return
        if isinstance(right, int) and not 0 <= right < len(choices):
            yield Problem(f"{name}[{place}]", right, f"the right one is none of the {len(choices)} choices", fix)
            return


def evaluate_tasks(model: Any, tokenizer: Any, tasks: Tasks, settings: TaskSettings) -> dict[str, Any]:
    """Runs the tasks in this process, on the model as it is, adapters included.

    Args:
        model: a causal LM, with or without adapters.
        tokenizer: its tokenizer.
        tasks: from `load_tasks`.
        settings: how many examples and questions, and the batch size.

    Returns:
        {"lm_eval": version, "num_fewshot", "limit", "asked": [name of a task or file], "tasks": {task: {metric: value,
        metric_stderr: its standard error, "n": questions, "version": of the task}}}; a group of tasks is there as well
        as each of them. What the harness does not give as a finite number is None.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    # The batch size belongs to the model: the harness ignores that of `simple_evaluate` where the model is loaded.
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
    """One task's or group's metrics, by plain names."""
    metrics = {key.removesuffix(NO_FILTER): value for key, value in values.items() if "," in key}
    return {
        **{key: _finite(value) for key, value in metrics.items()},
        "n": sum(results["n-samples"][task]["effective"] for task in leaves(name, results["group_subtasks"])),
        "version": results["versions"].get(name),
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def leaves(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks of a group, or the task itself."""
    parts = groups.get(name) or []
    return [leaf for part in parts for leaf in leaves(part, groups)] or [name]
