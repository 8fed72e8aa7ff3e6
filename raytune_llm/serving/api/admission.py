"""Middleware that bounds the open answers of a replica: those being decoded and those waiting. Plain ASGI.

The engine's queue is the waiting line. Health, metrics and the list of models are never in it.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from raytune_llm.serving.api.bounds import Refuse
from raytune_llm.serving.api.errors import overloaded


class AdmissionMiddleware:
    """Answers 503 with retry-after while as many answers are open as may be."""

    def __init__(self, app: ASGIApp, *, most_open: int, refuse: Refuse) -> None:
        self._app, self._most_open, self._refuse = app, most_open, refuse
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._num_open >= self._most_open:
            await self._refuse(overloaded())(scope, receive, send)
            return
        self._num_open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_open -= 1
