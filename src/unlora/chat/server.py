"""Serve the page to this computer only."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

from unlora.common.errors import InputError, Problem

if TYPE_CHECKING:
    import gradio as gr

_HOST = "127.0.0.1"
# Other host names are refused: a website could make its own name resolve to this computer (DNS rebinding).
_NAMES = (_HOST, "localhost")
LONGEST_QUEUE = 16


def free_port(port: int) -> int:
    """Return the port if it is free, or any free port for 0.

    Raises:
        InputError: the port cannot be used.
    """
    try:
        with socket.create_server((_HOST, port)) as found:
            return int(found.getsockname()[1])
    except (OSError, OverflowError) as error:
        fix = "name another port, or 0 for any free one"
        raise InputError(Problem("port", port, f"the page cannot be served there ({error})", fix)) from error


def check_gradio() -> None:
    """Import gradio with its analytics switched off.

    Raises:
        InputError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import time
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        fix = "install it: pip install 'unlora[chat]'"
        raise InputError(Problem("command", "chat", f"{error.name} is not installed", fix)) from error


def serve(page: gr.Blocks, port: int, open_browser: bool) -> None:
    """Serve the page until Ctrl-C. Its address is printed as soon as the page can be opened."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from unlora.chat.guard import Guard
    from unlora.chat.page import LOOK

    port = free_port(port)
    origins = [f"http://{name}:{port}" for name in _NAMES]
    for name in ("no_proxy", "NO_PROXY"):  # Gradio requests the page once itself, which must not go through a proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), _HOST)))
    _, address, _ = page.queue(max_size=LONGEST_QUEUE).launch(
        server_name=_HOST,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=list(_NAMES)),
                Middleware(Guard, origins=origins),
            ]
        },
        **LOOK,
    )
    try:
        print(address.rstrip("/"), flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)
