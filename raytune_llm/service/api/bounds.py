"""Bounds of requests: JSON bodies are read whole and small, uploads pass through in pieces.

Plain ASGI, as the endpoint's own bounds, which are used for all but uploads.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_llm.serving.api.auth import KEY_IN_SCOPE
from raytune_llm.serving.api.bounds import CLOSE, BoundsMiddleware, Refuse, check_head
from raytune_llm.serving.api.errors import ApiError

JSON_BYTES = 1_000_000
BODY_SECONDS = 30.0
"""For a whole JSON body, or between two pieces of an upload."""
REQUEST_SECONDS = 3600.0
"""Until an answer begins; chats have their endpoint's own limit, which is lower."""
UPLOAD_PATH = "/v1/files"
FORM_BYTES = 64 * 1024
"""What a form may have in addition to its file."""
MAX_UPLOADS = 8
"""Uploads of one key at a time."""


class ServiceBounds:
    """Answers 431, 413, 408, and 429 for too many uploads."""

    def __init__(self, app: ASGIApp, *, body_bytes: Mapping[str, int], max_file_bytes: int, refuse: Refuse) -> None:
        self._app, self._refuse, self._max_file_bytes = app, refuse, max_file_bytes
        self._json, self._by_path = self._bounded(JSON_BYTES), {p: self._bounded(n) for p, n in body_bytes.items()}
        self._uploads: Counter[str] = Counter()

    def _bounded(self, max_body_bytes: int) -> BoundsMiddleware:
        return BoundsMiddleware(
            self._app,
            max_body_bytes=max_body_bytes,
            body_timeout_seconds=BODY_SECONDS,
            request_timeout_seconds=REQUEST_SECONDS,
            refuse=self._refuse,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == UPLOAD_PATH:
            await self._upload(scope, receive, send)
        else:
            await self._by_path.get(scope.get("path", ""), self._json)(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope[KEY_IN_SCOPE]
        try:
            check_head(scope, 1 << 62)
            length = dict(scope["headers"]).get(b"content-length", b"")
            if length.isdigit() and int(length) > self._max_file_bytes + FORM_BYTES:
                raise file_too_large(self._max_file_bytes)
            if self._uploads[key] >= MAX_UPLOADS:
                message = f"{MAX_UPLOADS} uploads of this key are on their way; wait until one has ended"
                raise ApiError(429, message, code="too_many_uploads", headers={"retry-after": "5", **CLOSE})
        except ApiError as error:
            await self._refuse(error)(scope, receive, send)
            return
        self._uploads[key] += 1
        try:
            await self._app(scope, self._counted(receive), send)
        finally:
            self._uploads[key] -= 1

    def _counted(self, receive: Receive) -> Receive:
        """Raises ApiError for a body that is too large or stops coming."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                text = f"nothing of the upload arrived for {BODY_SECONDS:g} seconds"
                raise ApiError(408, text, code="request_timeout", headers=CLOSE) from None
            size += len(message.get("body", b""))
            if size > self._max_file_bytes + FORM_BYTES:
                raise file_too_large(self._max_file_bytes)
            return message

        return counted


def file_too_large(max_file_bytes: int) -> ApiError:
    message = (
        f"the file has more than {max_file_bytes} bytes, the most that this service takes (service.max_file_bytes)"
    )
    return ApiError(413, message, code="request_too_large", param="file", headers=CLOSE)
