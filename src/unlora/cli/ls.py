"""`unlora ls`: list losses, initialisers, teachers, benchmarks and published configurations."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unlora.cli.output import Answer
from unlora.settings import LsConfig

if TYPE_CHECKING:
    from unlora.pipeline.choices import Choices

EXAMPLE = "unlora ls losses"
SETTINGS = (LsConfig,)


def run(config: LsConfig) -> Answer:
    """List everything of the chosen kinds, with formulas, needs, defaults and papers."""
    from unlora.pipeline.choices import all_choices

    chosen = all_choices(config.kinds)
    rows = {kind: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for kind, table in chosen.items()}
    return Answer(rows, lambda: _print_markdown(chosen) if config.markdown else _print_tables(chosen))


def _print_markdown(tables: Mapping[str, Choices]) -> None:
    """Print the tables as they are in docs/methods.md."""
    print("\n".join(table.markdown() for table in tables.values()), end="")


def _print_tables(tables: Mapping[str, Choices]) -> None:
    """Print each row as a paragraph that starts a new line for each column, so that no text is ever cut."""
    from unlora.settings.training import DISTILLING
    from unlora.training.config import UnlearnConfig

    defaults = {"initialisers": DISTILLING["init"], "losses": UnlearnConfig.loss}
    width = shutil.get_terminal_size().columns
    for kind, table in tables.items():
        print(f"{kind}\n{'=' * len(kind)}\n")
        for name, *rest in table.rows:
            print(name + (" (default)" if name == defaults.get(kind) else ""))
            for column, text in zip(table.columns[1:], rest, strict=True):
                print(_paragraph(f"{column.partition(' of a ')[0]}: {text}", width))
            print()


def _paragraph(text: str, width: int) -> str:
    """Indent text, and wrap it between words. A word that is wider than the terminal is not broken."""
    return textwrap.fill(
        text,
        width,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
