"""`unlora quickstart`: run the whole workflow on persona."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlora.cli.output import Answer
from unlora.settings import QuickstartConfig

EXAMPLE = "unlora quickstart --seed 1"
SETTINGS = (QuickstartConfig,)
_SHOWN = {"forget": 3, "retain": 2}


def run(config: QuickstartConfig) -> Answer:
    """Run the quickstart, and show the metrics, some answers of the three models, and the path of the report."""
    from unlora.benchmarks.builtin.persona_trainings import preload_persona
    from unlora.benchmarks.builtin.recipe import Recipe
    from unlora.common.files import check_unused

    started = time.monotonic()
    folder = config.output_dir or Path("runs") / time.strftime("quickstart-%Y%m%d-%H%M%S")
    check_unused(folder, "output_dir")
    preload_persona(Recipe(seed=config.seed))  # in the background, while this process loads its own libraries

    import datasets

    datasets.disable_progress_bars()  # reading this little data needs no progress bar
    from unlora.bench.quickstart import quickstart
    from unlora.cli.tables import print_comparison
    from unlora.runs.folder import REPORT

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {line}", flush=True)

    report = quickstart(folder, config.seed, say)
    page = str(report.adapter.with_name(REPORT))

    def show() -> None:
        print_comparison(report.metrics)
        _print_answers(report.answers)
        print(page)

    return Answer({"report": page, **report.metrics}, show, report.adapter)


def _print_answers(logs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print some questions of the forget and the retain set with the answers of each model."""
    from rich.table import Table

    from unlora.common.console import PlainConsole
    from unlora.evals.log_format import TASKS

    for name, count in _SHOWN.items():
        table = Table("question", *(f"{model}'s answer" for model in logs), title=f"{name} set")
        columns = [log[TASKS[name]]["generated_text"] for log in logs.values()]
        # There are eight questions per person, so with a step of nine each one is about another person and fact.
        for index in list(columns[0])[: 9 * count : 9]:
            prompt = columns[0][index][0].removeprefix("Question: ").removesuffix("\nAnswer:")
            table.add_row(prompt, *(column[index][1] for column in columns))
        PlainConsole().print(table)
