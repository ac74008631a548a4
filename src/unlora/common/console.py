"""Tables and lines on a terminal, in which text from elsewhere is neither markup nor a command to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
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
        width, room = self.width, self.options.update(max_width=_UNLIMITED)
        needed = [Measurement.get(self, room, one).minimum for one in objects if isinstance(one, Table)]
        self.width = max(width, *needed, 0)
        super().print(*objects, **settings)
        self.width = width

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a text of a table or a line, plain before its width is measured."""
        return super().render_str(plain(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of something to show, with plain text in them."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(plain(part.text), part.style)
