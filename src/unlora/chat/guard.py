"""Restrict the chat's server to requests from its own page, and to what this page needs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The only paths that the page posts to, to ask a question and to stop an answer. Gradio has more, such as uploads.
_POST_PATHS = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
# Paths that are never served: they give access to files of this computer, or to other servers through this one.
_BLOCKED_PATHS = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/upload", "/gradio_api/stream", "/monitoring")
# Limits of the body of a request.
_MAX_BYTES, _MAX_SECONDS = 256 * 1024, 10.0


class Guard:
    """ASGI middleware that refuses requests from other sites, and all requests that the page itself does not send.

    Any website can make a browser send a request to this computer. It cannot forge the header `Origin`, which browsers
    add to every request that may change something.

    Args:
        app: the application that handles the accepted requests.
        origins: the addresses of the page.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        body = None
        if refusal is None:
            try:
                body = await asyncio.wait_for(_body(receive), _MAX_SECONDS)
                refusal = (413, "the request is too large") if body is None else None
            except asyncio.TimeoutError:  # from Python 3.11 on, the same as TimeoutError
                refusal = 408, "the request is too slow"
        if refusal:
            await _refuse(scope, receive, send, *refusal)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and reason if a request is refused because of its headers, method or path, else None."""
        if scope["type"] != "http":  # the page opens no WebSockets
            return 403, "not a request of this page"
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reads = scope["method"] in ("GET", "HEAD")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        foreign = "origin" in headers and headers["origin"] not in self.origins
        if foreign or (elsewhere and not reads):
            return 403, "not a request of this page"
        path = scope["path"].rstrip("/")
        if path.startswith(_BLOCKED_PATHS) or not (reads or path in _POST_PATHS):
            return 403, "this page does not offer that"
        return None


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None as soon as it is too large."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > _MAX_BYTES:
            return None
    return b"".join(parts)


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    from starlette.responses import PlainTextResponse

    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    # The rest of the body is not read, so the connection cannot be reused.
    await PlainTextResponse(reason, status, {"Connection": "close"})(scope, receive, send)
