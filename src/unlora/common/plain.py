"""Make untrusted text, such as the output of a model, safe to print on a terminal."""

from __future__ import annotations

import re
from typing import Any, TextIO

# Control characters other than newline and tab, characters that change the direction of text, and lone surrogates,
# which cannot be encoded.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What progress bars write to redraw a line.
_BARS = re.compile(r"(\r|\x1b\[A)")


def plain(text: str) -> str:
    """Replace each character that could affect a terminal by a visible symbol."""
    return _ACTIVE.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures, such as "␛"
    return "␡" if code == 0x7F else "�"


def escaped(json_text: str) -> str:
    """Escape the characters of a JSON text that could affect a terminal. Its value stays the same."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


class PlainStream:
    """A stream that makes all text plain before it writes it to another stream.

    Args:
        stream: where the text goes. Text that is written to it directly is not checked.
        bars: whether to pass on the control sequences with which progress bars redraw a line.
    """

    def __init__(self, stream: TextIO, bars: bool = False) -> None:
        self.stream = stream
        self._bars = bars

    def write(self, text: str) -> int:
        """Write the text, made plain."""
        parts = _BARS.split(text) if self._bars else [text]  # odd indices: control sequences of bars
        shown = "".join(part if place % 2 else plain(part) for place, part in enumerate(parts))
        encoding = getattr(self.stream, "encoding", None) or "utf-8"  # not every terminal can show all characters
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def direct(stream: Any) -> Any:
    """Return the stream below a `PlainStream`, or any other stream itself."""
    return stream.stream if isinstance(stream, PlainStream) else stream
