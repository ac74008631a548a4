"""Text that does nothing to a terminal, whatever a model, a file or a stranger has written."""

from __future__ import annotations

import re
from typing import Any, TextIO

# Control characters other than the end of a line and the tab, characters that turn the direction of text around, and
# halves of characters, which no terminal can show.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What progress bars write to draw a line again.
_BARS = re.compile(r"(\r|\x1b\[A)")


def plain(text: str) -> str:
    """Return the text with a visible mark in the place of each character that could act on a terminal."""
    return _ACTIVE.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures, such as "␛"
    return "␡" if code == 0x7F else "�"


def escaped(json_text: str) -> str:
    """Return JSON of the same value in which these characters are escaped."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


class PlainStream:
    """A stream that passes on plain text only.

    Args:
        stream: where the text goes. Whoever writes to it directly answers for what is written.
        bars: whether to let pass what progress bars write, too.
    """

    def __init__(self, stream: TextIO, bars: bool = False) -> None:
        self.stream = stream
        self._bars = bars

    def write(self, text: str) -> int:
        """Write the text, made plain."""
        parts = _BARS.split(text) if self._bars else [text]  # at odd places, what bars write
        shown = "".join(part if place % 2 else plain(part) for place, part in enumerate(parts))
        encoding = getattr(self.stream, "encoding", None) or "utf-8"  # not every terminal has all characters
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def direct(stream: Any) -> Any:
    """Return the stream that a `PlainStream` writes to, or the stream itself if it is another one."""
    return stream.stream if isinstance(stream, PlainStream) else stream
