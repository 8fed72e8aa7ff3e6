"""Middleware that checks API keys. Plain ASGI, so that streams and disconnects pass.

A server has only the SHA-256 of the keys and compares them in constant time. /healthz needs no key.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from raytune_llm.serving.api.bounds import Refuse
from raytune_llm.serving.api.keys import key_hash
from raytune_llm.serving.api.wrong_keys import WrongKeys

OPEN_PATHS = ("/healthz",)
KEY_IN_SCOPE = "raytune_llm.key"
"""The ASGI scope's entry with the hash of the request's key; "" when no keys are configured."""
CLIENT_HEADER = "x-raytune-llm-client"
"""The header by which a service that has checked a client's key names the key's hash to an app behind it."""


class AuthMiddleware:
    """Refuses requests without a valid key with 401, or 429 after many of them, when keys are configured."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key_hashes: Sequence[str],
        refuse: Refuse,
        open_paths: Sequence[str] = (),
        is_behind_service: bool = False,
    ) -> None:
        """`open_paths`: what may be read without a key, too; one that ends in '/' means all below it.
        is_behind_service: whether CLIENT_HEADER is believed, and the keys are the service's own."""
        self._app, self._refuse, self._is_behind_service = app, refuse, is_behind_service
        self._key_hashes, self._open_paths = tuple(key_hashes), tuple(open_paths)
        self._wrong_keys = WrongKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = key_hash(bearer(headers.get("authorization", "")))
        scope[KEY_IN_SCOPE] = given if self._key_hashes else ""
        if self._is_behind_service:
            scope[KEY_IN_SCOPE] = headers.get(CLIENT_HEADER, "")
        if self._key_hashes and not self._is_known(given) and not self._is_open(scope):
            address = (scope.get("client") or ("unknown", 0))[0]
            await self._refuse(self._wrong_keys.refusal(address))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        is_read = scope["method"] in ("GET", "HEAD")
        is_listed = any(path == one or (one.endswith("/") and path.startswith(one)) for one in self._open_paths)
        return path in OPEN_PATHS or (is_read and is_listed)

    def _is_known(self, given: str) -> bool:
        # all keys are compared, so that the time doesn't depend on which one matches
        return any([hmac.compare_digest(given, expected) for expected in self._key_hashes])


def bearer(authorization: str) -> str:
    """The key of an Authorization header; "" without one."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
