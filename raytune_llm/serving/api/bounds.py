"""Middleware that bounds a request: bytes of its headers and body, seconds for its body and for all of it.

Plain ASGI, so that streams and disconnects pass. A body is read whole before the request is admitted: one that never
arrives holds a connection for a while, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_llm.serving.api.deadline import set_deadline
from raytune_llm.serving.api.errors import ApiError, from_status

MAX_HEADER_BYTES = 32 * 1024
"""Of all headers and the path together; nginx and Apache allow about as many."""
GRACE_SECONDS = 0.25
"""By how much an answer's own deadline, whose error names its tokens, precedes that of its request."""
CLOSE = {"connection": "close"}

Refuse = Callable[[ApiError], Response]
"""The response of an error, which is counted."""


class Disconnected(Exception):
    """The client left."""


class BoundsMiddleware:
    """Answers 431, 413 and 408."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout_seconds: float,
        request_timeout_seconds: float,
        refuse: Refuse,
    ) -> None:
        self._app, self._refuse = app, refuse
        self._max_body_bytes, self._body_timeout_seconds = max_body_bytes, body_timeout_seconds
        self._request_timeout_seconds = request_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._request_timeout_seconds
        try:
            check_head(scope, self._max_body_bytes)
            if scope["method"] == "POST":
                receive = _replay(await self._body(receive), receive)
        except Disconnected:
            return
        except ApiError as error:
            await self._refuse(error)(scope, receive, send)
            return
        await self._run_until(deadline, scope, receive, send)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body. Raises ApiError when it is too large or too slow, Disconnected when the client leaves."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise too_large(self._max_body_bytes)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            text = f"the request's body did not arrive within {self._body_timeout_seconds:g} seconds"
            raise ApiError(408, text, code="request_timeout", headers=CLOSE) from None

    async def _run_until(self, deadline: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app; answer 408 when no answer has begun by the deadline."""
        set_deadline(deadline)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and not timeout.expired():
                timeout.reschedule(None)  # from here on the answer's own deadline counts
            await send(message)

        try:
            async with asyncio.timeout_at(deadline + GRACE_SECONDS) as timeout:
                await self._app(scope, receive, sent)
        except TimeoutError:
            if not timeout.expired():
                raise
            message = (
                f"the request took longer than {self._request_timeout_seconds:g} seconds, waiting included; "
                "try again later"
            )
            await self._refuse(ApiError(408, message, code="request_timeout"))(scope, receive, send)


def check_head(scope: Scope, max_body_bytes: int) -> None:
    """Raises ApiError for too many bytes, of the headers or announced by them."""
    size = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        message = f"the request's headers have {size} bytes, more than {MAX_HEADER_BYTES}"
        raise ApiError(431, message, code="headers_too_large", headers=CLOSE)
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and int(length) > max_body_bytes:
        raise too_large(max_body_bytes)


def too_large(max_body_bytes: int) -> ApiError:
    return from_status(413, f"the request's body has more than {max_body_bytes} bytes", headers=CLOSE)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Delivers the body, then what follows it: that the client has left."""
    delivered = False

    async def replayed() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
