"""Middleware that checks API keys and the size of a request's body. Plain ASGI, so that streams and disconnects pass.

A replica has only the SHA-256 of the keys and compares them in constant time. /healthz needs no key.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_llm.serving.api.errors import ApiError, from_status
from raytune_llm.serving.api.keys import key_hash

OPEN_PATHS = ("/healthz",)
KEY_IN_SCOPE = "raytune_llm.key"
"""The ASGI scope's entry with the hash of the request's key; "" when no keys are configured."""


class AuthMiddleware:
    """Refuses requests without a valid key with 401 (when keys are configured), and too large bodies with 413."""

    def __init__(self, app: ASGIApp, *, key_hashes: Sequence[str], max_body_bytes: int) -> None:
        self._app = app
        self._key_hashes = tuple(key_hashes)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = key_hash(bearer(Headers(scope=scope).get("authorization", "")))
        scope[KEY_IN_SCOPE] = given if self._key_hashes else ""
        refusal = self._refusal(scope, given)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _refusal(self, scope: Scope, given: str) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._key_hashes and scope["path"] not in OPEN_PATHS and not self._is_known(given):
            return ApiError(401, "no valid API key; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return self._too_large()
        return None

    def _is_known(self, given: str) -> bool:
        # all keys are compared, so that the time doesn't depend on which one matches
        return any([hmac.compare_digest(given, expected) for expected in self._key_hashes])

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(413, self._too_large().message)
            return message

        return limited

    def _too_large(self) -> ApiError:
        return from_status(413, f"the request's body has more than {self._max_body_bytes} bytes")


def bearer(authorization: str) -> str:
    """The key of an Authorization header; "" without one."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
