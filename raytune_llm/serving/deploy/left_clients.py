"""Middleware for replicas: a client that leaves while its request is read is a disconnect, not an error.

Ray cancels what a request had called when its client leaves; where that is the call which fetches the rest of the
request from the proxy, `receive` raises instead of delivering the disconnect (ray 2.60,
serve/_private/http_util.py).
"""

from __future__ import annotations

from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class LeftClientsMiddleware:
    """Delivers http.disconnect where Ray raises TaskCancelledError."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, received, send)
