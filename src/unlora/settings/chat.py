"""Where the chat page is served, and the limits of its answers."""

from __future__ import annotations

from dataclasses import dataclass

from unlora.common.errors import Problem
from unlora.settings.checks import Range, at_least, positive, value_problems
from unlora.settings.setting import setting

_RANGES = {
    "port": Range("a port from 0 to 65535", "there is no such port", lambda port: 0 <= port <= 65535),
    "max_tokens": at_least(2, "a question and an answer have a token each"),
    "max_seconds": positive("no answer would be given"),
}


@dataclass
class ChatConfig:
    """Where the page is served. It is bound to 127.0.0.1, so only this computer can open it. Ctrl-C ends it."""

    port: int = setting(7860, "Port of the page. 0 picks any free one.")
    open_browser: bool = setting(False, "Open the page in the browser.")
    max_tokens: int = setting(4096, "Maximum number of tokens of a question and its answer together.")
    max_seconds: float = setting(300.0, "Seconds after which the answers to a question end.")

    def problems(self) -> list[Problem]:
        """Check the numbers. Whether the port is free is only checked when the page is served."""
        return value_problems(self, _RANGES)
