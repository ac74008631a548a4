"""Progress with the remaining time: bars on a terminal, occasional lines elsewhere, or nothing in quiet mode."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

from unlora.common.distributed import is_main

# Seconds before the progress of a step is shown, and between two of its lines without a terminal.
DELAY, INTERVAL = 2.0, 10.0
# tqdm's line: "name:  33%|###   | 20/60 [00:10<00:20,  2.00 steps/s]".
_BAR = re.compile(
    r"(?P<name>.*?):? *(?P<percent>\d+%)\|[^|]*\| *(?P<done>\S+/\S+) \[[^<]*<(?P<left>[^,]*), *(?P<rest>.*)\]"
)
# What tqdm writes after a bar below others, to move the cursor up again.
_UP = "\x1b[A"


def bar(iterable: Iterable[object] | None = None, **settings: object) -> Any:
    """Return a progress bar. It takes tqdm's arguments, and is shown after `DELAY` seconds."""
    from transformers.utils.logging import tqdm

    return tqdm(iterable, **{"delay": DELAY, "dynamic_ncols": True, "disable": not is_main(), **settings})


def tell(line: str) -> None:
    """Print a line to stderr in the main process. `terminal` silences stderr in quiet mode."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def shown(name: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar, and yield a function that sets the amount done so far."""
    before = 0
    with bar(desc=name, unit=unit, total=total) as shown_bar:

        def show(done: int) -> None:
            nonlocal before
            shown_bar.update(done - before)
            before = done

        yield show


@contextmanager
def terminal(quiet: bool = False) -> Iterator[None]:
    """Adapt all progress bars, including those of other libraries: plain lines without a terminal, none if `quiet`."""
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
    """Return whether stderr is silenced. Child processes do not inherit this, so they need a flag."""
    return isinstance(sys.stderr, Silence)


class Silence(io.TextIOBase):
    """A stream that discards everything."""

    def write(self, text: str) -> int:
        """Discard the text."""
        return len(text)


class PlainLines(io.TextIOBase):
    """A stream that passes text on, but reduces a progress bar that is redrawn to one line per `INTERVAL` seconds.

    The first line of a bar is written after `DELAY` seconds, and the last one when it is full. A bar that is full
    before `DELAY` has no line.

    Args:
        stream: where the lines go.
        now: the clock, in seconds.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.now = now
        self._due: dict[str, float] = {}  # bar -> time from which its next line may be written
        self._told: set[str] = set()  # bars that have had a line
        self._drawn = False

    def write(self, text: str) -> int:
        """Write text, or the state of a bar, which tqdm marks by a carriage return or a cursor movement."""
        if "\r" in text or _UP in text:
            self._drawn = True
            self._draw(text.replace(_UP, "").strip())
        elif text != "\n" or not self._drawn:  # a newline after a bar only ends the line of the bar
            self._drawn = False
            self.stream.write(text)
        return len(text)

    def _draw(self, text: str) -> None:
        if not text:
            return
        found = _BAR.match(text)
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
        """Flush the underlying stream."""
        self.stream.flush()
