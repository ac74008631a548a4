"""Where the chat page is served."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ChatConfig:
    """Where the page is served. It is bound to 127.0.0.1, so only this computer can open it. Ctrl-C ends it."""

    port: int = field(default=7860, metadata={"help": "Its port. 0 picks any free one."})
    open_browser: bool = field(default=False, metadata={"help": "Open the page in the browser."})
