"""An ASGI app that another HTTP server answers: streamed as it comes, and ended there when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
from starlette.types import Message, Receive, Scope, Send

from raytune_llm.serving.api.errors import ApiError

CONNECT_SECONDS = 5.0
NOT_SENT_ON = (b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server")
"""Headers of an answer that belong to its connection."""
RETRY_AFTER = {"retry-after": "5"}


class ReverseProxy:
    """Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        read_seconds: float,
        on_lost: Callable[[], None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """url: before the path; key: sent as the API key; read_seconds: how long nothing may come; on_lost: called
        when nobody answers there."""
        timeout = httpx.Timeout(CONNECT_SECONDS, read=read_seconds, write=read_seconds, pool=read_seconds)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(
            timeout=timeout,
            limits=limits,
            trust_env=False,
            headers={"accept-encoding": "identity"},
            transport=transport,
        )
        self._url, self._authorization, self._on_lost = url, f"Bearer {key}", on_lost
        self.num_open = 0
        self.last_used = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_open += 1
        try:
            content = await _body(receive)
            answer = asyncio.create_task(self._answer(scope, content, send))
            left = asyncio.create_task(_until_left(receive))
            try:
                await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            finally:
                left.cancel()
                if not answer.done():
                    answer.cancel()
                await asyncio.gather(answer, left, return_exceptions=True)
            if not answer.cancelled():
                answer.result()
        finally:
            self.num_open -= 1
            self.last_used = time.monotonic()

    async def _answer(self, scope: Scope, content: bytes, send: Send) -> None:
        headers = [*scope["headers"], (b"authorization", self._authorization.encode())]
        url = self._url + scope["path"]
        has_begun = False
        try:
            async with self._client.stream(scope["method"], url, headers=headers, content=content) as response:
                if await _is_lost(response):
                    raise httpx.RemoteProtocolError("no application is there")
                kept = [(name, value) for name, value in response.headers.raw if name.lower() not in NOT_SENT_ON]
                has_begun = True
                await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
                async for part in response.aiter_bytes():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except httpx.TransportError as error:
            if has_begun:  # the connection ends before the answer does, by which its client knows
                raise ConnectionError(f"an answer of {self._url} was cut off: {error}") from error
            if isinstance(error, httpx.ReadTimeout):
                late = ApiError(408, "the request took too long, waiting included; try again later", code="timeout")
                await late.response()(scope, _nothing, send)
                return
            self._on_lost()
            lost = ApiError(
                503,
                "what answers for this model was lost; it starts again: retry",
                code="unavailable",
                headers=RETRY_AFTER,
            )
            await lost.response()(scope, _nothing, send)


async def _is_lost(response: httpx.Response) -> bool:
    """Whether Ray Serve's proxy answers and not the application, which isn't there."""
    if response.status_code not in (404, 500, 503):
        return False
    is_text = response.headers.get("content-type", "").startswith("text/plain")
    return is_text or b'"code": "unavailable"' in await response.aread()


async def _body(receive: Receive) -> bytes:
    content = bytearray()
    while True:
        message = await receive()
        content += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(content)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    raise AssertionError("an error's answer reads nothing")
