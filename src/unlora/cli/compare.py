"""`unlora compare`: compare runs side by side, in a table and on a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unlora.cli.output import Answer
from unlora.common.errors import from_elsewhere
from unlora.settings import CompareConfig

if TYPE_CHECKING:
    from unlora.report.compare import Section
    from unlora.report.tables import Cell

EXAMPLE = "unlora compare run-a run-b --output compare.html"
_BOLD = "on the Pareto front of utility and forgetting"
SETTINGS = (CompareConfig,)


def run(config: CompareConfig) -> Answer:
    """Write the page, and show the table."""
    from unlora.report.compare import Group, Section, as_json, labels_of
    from unlora.report.compare_page import write_comparison
    from unlora.report.read import read_log_as_run, read_run

    folders = list(dict.fromkeys(Path(path).resolve() for path in config.runs))
    logs = {"original": config.original_log, "retrained": config.retrained}
    others = {model: Path(log) for model, log in logs.items() if log is not None}
    runs = [read_log_as_run(path, others) if path.is_file() else read_run(path) for path in folders]
    groups = [Group(label, [run]) for run, label in zip(runs, labels_of(folders), strict=True)]
    section = Section("", groups)
    with from_elsewhere("RUN", config.runs, "their files are not those that unlora writes", "name other runs"):
        write_comparison([section], config.output)

    def show() -> None:
        if config.markdown:
            print(_markdown(section))
        else:
            _print_table(section)

    return Answer({"runs": as_json(section)}, show, config.output)


def _markdown(section: Section) -> str:
    from unlora.report.compare import best, comparison

    table, on_front = comparison(section), best(section)

    def text(cell: Cell) -> str:
        whole = f"{cell.text} ({cell.note})" if cell.note else cell.text
        escaped = " ".join(whole.split()).replace("|", "\\|").replace("<", "&lt;")
        return f"**{escaped}**" if cell.text in on_front else escaped

    lines = [table.columns, ["---"] * len(table.columns), *([text(cell) for cell in row] for row in table.rows)]
    body = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{body}\n{table.caption}. Bold: {_BOLD}.\n"


def _print_table(section: Section) -> None:
    """Print the table to the terminal, and the verdicts below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from unlora.common.console import PlainConsole
    from unlora.report.compare import best, comparison
    from unlora.report.names import MISSING

    shown, on_front, console = comparison(section), best(section), PlainConsole()
    rows = [[cell.text for cell in row] for row in shown.rows]
    widths = [max(map(len, [*head.split(), *texts])) for head, *texts in zip(shown.columns, *rows, strict=True)]
    room = console.width - sum(width + 2 for width in widths[1:-1]) - 1
    # If the names leave no room for the numbers, the rows are numbered, and the names follow below the table.
    numbered = widths[0] > room
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("Run", no_wrap=True)
    for heading in shown.columns[1:-1]:
        table.add_column("\n".join(heading.split()), no_wrap=True, justify="right")
    for place, (name, *numbers, _) in enumerate(rows, 1):
        style = "bold" if name in on_front else None
        table.add_row(str(place) if numbered else name, *numbers, style=style)
    console.print(table)
    for place, (name, *_, told) in enumerate(rows, 1):
        if numbered or told != MISSING:
            text = f"{place} {name}: {told}" if numbered else f"{name}: {told}"
            console.print(text, soft_wrap=True)
    console.print(f"bold: {_BOLD}")
