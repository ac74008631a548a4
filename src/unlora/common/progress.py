"""Progress with time left: bars on a terminal, now and then a line where there is none, nothing if so wished."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

from unlora.common.distributed import is_main

# Seconds that a step may take without progress, and between two lines where there is no terminal.
DELAY, INTERVAL = 2.0, 10.0
# tqdm's line: "name:  33%|###   | 20/60 [00:10<00:20,  2.00 steps/s]".
BAR = re.compile(
    r"(?P<name>.*?):? *(?P<percent>\d+%)\|[^|]*\| *(?P<done>\S+/\S+) \[[^<]*<(?P<left>[^,]*), *(?P<rest>.*)\]"
)
UP = "\x1b[A"  # a bar below others goes up again


def bar(iterable: Iterable[Any] | None = None, **settings: Any) -> Any:
    """A progress bar with tqdm's arguments, that shows when its step takes longer than two seconds."""
    from transformers.utils.logging import tqdm

    return tqdm(iterable, **{"delay": DELAY, "dynamic_ncols": True, "disable": not is_main(), **settings})


@contextmanager
def shown(name: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields what tells it how much has been done so far."""
    before = 0
    with bar(desc=name, unit=unit, total=total) as shown_bar:

        def show(done: int) -> None:
            nonlocal before
            shown_bar.update(done - before)
            before = done

        yield show


@contextmanager
def terminal(quiet: bool = False) -> Iterator[None]:
    """Within it all bars, those of other libraries too, suit stderr: lines where it is no terminal, or nothing."""
    from transformers.utils.logging import set_tqdm_hook

    stream: Any = sys.stderr
    if quiet:
        stream = Silence()
    elif not stream.isatty():
        stream = PlainLines(stream)
    previous = set_tqdm_hook(lambda make, args, settings: make(*args, **{"delay": DELAY, **settings}))
    try:
        with redirect_stderr(stream):
            yield
    finally:
        set_tqdm_hook(previous)


def is_quiet() -> bool:
    """Whether stderr is silenced; what a process that is started must be told."""
    return isinstance(sys.stderr, Silence)


class Silence(io.TextIOBase):
    """A stream that nothing comes out of."""

    def write(self, text: str) -> int:
        """Drops the text."""
        return len(text)


class PlainLines(io.TextIOBase):
    """Passes text on, but turns what a bar draws over and over into a line every `INTERVAL` seconds.

    A bar's first line comes after `DELAY` seconds, and its last when it is full, unless it took less time.

    Args:
        stream: where lines go.
        now: seconds on a clock.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.now = now
        self._due: dict[str, float] = {}  # by bar: when its next line may come
        self._told: set[str] = set()  # the bars that have had a line
        self._drawn = False

    def write(self, text: str) -> int:
        """Takes text, or a bar's state, which begins with a carriage return."""
        if "\r" in text or UP in text:
            self._drawn = True
            self._draw(text.replace(UP, "").strip())
        elif text != "\n" or not self._drawn:  # a bar ends its line
            self._drawn = False
            self.stream.write(text)
        return len(text)

    def _draw(self, text: str) -> None:
        if not text:
            return
        found = BAR.match(text)
        name = found["name"] if found else text.partition(":")[0]
        full = found is not None and found["percent"] == "100%"
        now = self.now()
        if now >= self._due.setdefault(name, now + DELAY) or (full and name in self._told):
            self.stream.write(self._line(found, text) + "\n")
            self.stream.flush()
            self._due[name] = now + INTERVAL
            self._told.add(name)
        if full:
            self._told.discard(name)
            del self._due[name]

    @staticmethod
    def _line(found: re.Match[str] | None, text: str) -> str:
        if found is None:
            return text
        return f"{found['name']}: {found['done']} ({found['percent']}), {found['left']} left, {found['rest']}"

    def flush(self) -> None:
        """Passes it on."""
        self.stream.flush()
