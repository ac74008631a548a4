"""WMDP (Li et al. 2024, arXiv 2403.03218): the corpus of one subject is forgotten, and all subjects are evaluated.

WMDP, MMLU and all other tasks are evaluated by lm-evaluation-harness.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from unlora.benchmarks.interface import Benchmark, Direction, Log, Measured, Metric, Options, Reading, needed
from unlora.common.errors import InputError, Problem
from unlora.common.files import write_json
from unlora.evals.harness import Tasks, asked_rows, evaluate_tasks, load_tasks
from unlora.settings import TaskSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlora.data import TextFormat
    from unlora.data.sources import Record

# Subject -> its corpus: a configuration on the Hub, and a file in the release of WMDP's authors.
CORPORA = {"bio": "bio-forget-corpus", "cyber": "cyber-forget-corpus"}
TASKS = ["wmdp_bio", "wmdp_cyber", "mmlu"]
# Prefixes of the names of tasks about subjects to forget.
FORGOTTEN = ("wmdp", "mini_craft")
# Prefixes of the names of metrics that are shares of the questions.
_SHARES = ("acc", "exact_match")


class Wmdp(Benchmark):
    """WMDP, or any other tasks of lm-evaluation-harness."""

    name = "wmdp"
    title = "lm-evaluation-harness"
    paper = "Li et al. 2024, arXiv 2403.03218"
    needs = "the model and a forget corpus (cais/wmdp-corpora); pip install 'unlora[wmdp]'"
    splits = tuple(CORPORA)
    metrics = {  # noqa: RUF012
        "kept": Metric("accuracy on subjects to keep", "high", limits=(0, 1)),
        "forgotten": Metric("accuracy on subjects to forget", "low", limits=(0, 1)),
    }
    plane = ("kept", "forgotten")
    settings = TaskSettings
    takes_text_settings = False

    def problems(self, options: Options) -> list[Problem]:
        """Return a problem for each missing option. WMDP has no retrained model: it would take another pretraining."""
        problems = needed(options, "name the model that is to forget", "name a folder, or cais/wmdp-corpora")
        if options.retrained:
            problems.append(_no_retrained("retrained", options.retrained))
        return problems

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the request of VILA's authors: the corpus in chunks of 512 tokens, and wikitext to retain."""
        return {
            "model_name_or_path": options.model,
            "max_length": 512,
            "forget_data": options.data,
            "forget_name": CORPORA[split],
            "retain_data": "Salesforce/wikitext",
            "retain_name": "wikitext-2-raw-v1",
            "retain_split": "test",
            "seed": seed,
            "importance_seed": seed,
        }

    def evaluation(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the tasks of all subjects, whichever was forgotten."""
        return {"tasks": TASKS}

    def load(self, settings: TaskSettings) -> Tasks:
        """Return the tasks with their data."""
        # The harness does not distribute the work over processes if the model is already loaded.
        if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
            fix = "start it without `accelerate launch`"
            raise InputError(Problem("processes", count, "each would ask all questions", fix))
        return load_tasks(settings)

    def rows(self, data: Tasks) -> Iterable[Record]:
        """Return every question as the harness asks it, so that a change of the template is noticed as well."""
        return asked_rows(data)

    def score(self, model: PreTrainedModel, text_format: TextFormat, data: Tasks, settings: TaskSettings) -> Log:
        """Return the harness's results."""
        return evaluate_tasks(model, text_format.tokenizer, data, settings)

    def owns(self, log: Mapping[str, Any]) -> bool:
        """Return whether the log has results of the harness. Older logs do not name their benchmark."""
        return "tasks" in log

    def read_retrained(self, path: str, data: Tasks, settings: TaskSettings) -> NoReturn:
        """Refuse the log, because no number is compared with a retrained model's."""
        raise InputError(_no_retrained("retrained", path))

    def read(self, log: Log, retrained: Log | None = None) -> Reading:
        """Return the metrics of the requested tasks, and the means over tasks of their first metrics."""
        values: dict[str, Measured | None] = {}
        first: dict[str, list[Measured]] = {"low": [], "high": []}
        for task, metrics in asked_metrics(log).items():
            measured = {name: _measured(log["tasks"][task], name) for name in metrics}
            values |= {f"{task} {name}": value for name, value in measured.items()}
            first[_better(task)] += [value for value in list(measured.values())[:1] if value is not None]
        means = {"kept": first["high"], "forgotten": first["low"]}
        return Reading(
            values=values,
            examples={task: int(log["tasks"][task]["n"]) for task in asked_metrics(log)},
            derived={name: _mean(parts) for name, parts in means.items() if parts},
        )

    def metric(self, name: str) -> Metric:
        """Return the meaning of a task's metric. Lower is better for tasks about subjects to forget."""
        limits = (0.0, 1.0) if name.split()[-1].startswith(_SHARES) else Metric.limits
        return self.metrics.get(name) or Metric(name, _better(name), limits=limits)

    def summary(self, log: Log, retrained: Log | None = None) -> dict[str, Any]:
        """Return the whole log."""
        return log

    def write_log(self, path: str | Path, log: Log, summary: dict[str, Any]) -> None:
        """Write the log with the name of the benchmark."""
        write_json(path, {"benchmark": self.name, **log})


def asked_metrics(log: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return {task: names of its metrics} for the requested tasks and groups, without the tasks of a group."""
    tasks = log["tasks"]
    asked = [name for name in log["asked"] if name in tasks] or tasks  # the tasks of a tag or a file have other names
    return {
        name: [metric for metric in tasks[name] if metric not in ("n", "version") and "_stderr" not in metric]
        for name in asked
    }


def _no_retrained(argument: str, value: Any) -> Problem:
    return Problem(argument, value, "WMDP is not compared with a retrained model", "remove it")


def _better(task: str) -> Direction:
    return "low" if task.startswith(FORGOTTEN) else "high"


def _measured(row: Mapping[str, Any], metric: str) -> Measured | None:
    value = row[metric]
    return None if value is None else Measured(float(value), float(row.get(f"{metric}_stderr") or 0.0))


def _mean(parts: list[Measured]) -> Measured:
    """Return the mean over tasks, whose questions are independent samples."""
    error = sum(part.standard_error**2 for part in parts) ** 0.5
    return Measured(sum(part.value for part in parts) / len(parts), error / len(parts))


WMDP = Wmdp()
