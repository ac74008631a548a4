"""Tables and lines on a terminal, in which text from elsewhere is neither markup nor a command to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from textwrap import fill
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from unlora.common.plain import direct, plain

_UNLIMITED = 100_000  # characters of a line


class PlainConsole(Console):
    """A console on stdout that shows all text as it is. Only its own styles become colours."""

    def __init__(self) -> None:
        super().__init__(file=direct(sys.stdout), markup=False, highlight=False, emoji=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print, and give a table more than the terminal's width rather than cut off a word."""
        width, tables = self.width, [one for one in objects if isinstance(one, Table)]
        for table in tables:
            if self._extent(table).maximum > width:
                _keep_words(table)
        self.width = max(width, *(self._extent(table).minimum for table in tables), 0)
        super().print(*objects, **settings)
        self.width = width

    def _extent(self, table: Table) -> Measurement:
        return Measurement.get(self, self.options.update(max_width=_UNLIMITED), table)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a text of a table or a line, plain before its width is measured."""
        return super().render_str(plain(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of something to show, with plain text in them."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(plain(part.text), part.style)


def _keep_words(table: Table) -> None:
    """Let a narrow table wrap its headings and its texts, but not its names and numbers, which rich would cut."""
    for column in table.columns:
        column.overflow = "fold"
        cells, heading = [str(cell) for cell in column.cells], str(column.header)
        if all(len(cell.split()) < 2 for cell in cells):
            column.no_wrap = True
            column.header = fill(heading, max(map(len, [*cells, *heading.split(), "-"])), break_long_words=False)
