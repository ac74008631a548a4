"""Where the chat page is served."""

from __future__ import annotations

from dataclasses import dataclass

from unlora.settings.setting import setting


@dataclass
class ChatConfig:
    """Where the page is served. It is bound to 127.0.0.1, so only this computer can open it. Ctrl-C ends it."""

    port: int = setting(7860, "Port of the page. 0 picks any free one.")
    open_browser: bool = setting(False, "Open the page in the browser.")
