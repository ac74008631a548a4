"""What the chat's server takes: requests of its own page, and no more than the page needs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# All that the page posts: a question, and the end of an answer. Gradio offers more, such as uploads of any size.
_POSTS = ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset")
# What it never gets: files of this computer, and other servers' pages through this one.
_HIDDEN = ("/gradio_api/file", "/gradio_api/proxy", "/gradio_api/upload", "/gradio_api/stream", "/monitoring")
_MOST_BYTES, _MOST_SECONDS = 256 * 1024, 10.0


class Guard:
    """ASGI middleware that refuses requests of other sites, and all that the page itself does not send.

    Any website can make a browser send a request to this computer. It cannot forge the header `Origin`, which browsers
    add to each request that may change something.

    Args:
        app: what answers the other requests.
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
                body = await asyncio.wait_for(_body(receive), _MOST_SECONDS)
                refusal = (413, "the request is too large") if body is None else None
            except asyncio.TimeoutError:  # from Python 3.11 on, the same as TimeoutError
                refusal = 408, "the request is too slow"
        if refusal:
            await _refuse(scope, receive, send, *refusal)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, again, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason if the head of a request is enough to refuse it."""
        if scope["type"] != "http":  # the page opens no web sockets
            return 403, "not a request of this page"
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reads = scope["method"] in ("GET", "HEAD")
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        foreign = "origin" in headers and headers["origin"] not in self.origins
        if foreign or (elsewhere and not reads):
            return 403, "not a request of this page"
        path = scope["path"].rstrip("/")
        if path.startswith(_HIDDEN) or not (reads or path in _POSTS):
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
        if size > _MOST_BYTES:
            return None
    return b"".join(parts)


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    from starlette.responses import PlainTextResponse

    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    # What is left of the body is not read, so the connection cannot be used again.
    await PlainTextResponse(reason, status, {"Connection": "close"})(scope, receive, send)
