"""Print tables and lines to a terminal, without interpreting untrusted text as markup or as control sequences."""

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

_UNLIMITED = 100_000  # characters per line: wider than any table


class PlainConsole(Console):
    """A console on stdout that prints text literally: only its own styles produce colours."""

    def __init__(self) -> None:
        super().__init__(file=direct(sys.stdout), markup=False, highlight=False, emoji=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print, and let a table exceed the terminal's width if it would have to cut off a word otherwise."""
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
        """Return the text of a cell or a line. It is made plain before rich measures its width."""
        return super().render_str(plain(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, with their text made plain."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(plain(part.text), part.style)


def _keep_words(table: Table) -> None:
    """Wrap the headings and prose of a table that is too wide, but not its names and numbers, which rich would cut."""
    for column in table.columns:
        column.overflow = "fold"
        cells, heading = [str(cell) for cell in column.cells], str(column.header)
        if all(len(cell.split()) < 2 for cell in cells):
            column.no_wrap = True
            column.header = fill(heading, max(map(len, [*cells, *heading.split(), "-"])), break_long_words=False)
