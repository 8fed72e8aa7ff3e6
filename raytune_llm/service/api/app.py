"""The app of the tuning service: who may ask, how much, and where each route is."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_llm.service.api import events, files, fine_tuning, vertex
from raytune_llm.service.api.backend import Backend
from raytune_llm.service.api.bounds import ServiceBounds
from raytune_llm.service.api.own_machine import OwnMachineMiddleware
from raytune_llm.service.api.refusals import GOOGLE_REFUSALS, OPENAI_REFUSALS, Refusal, add_error_handlers
from raytune_llm.serving.api.auth import AuthMiddleware

DESCRIPTION = """Files and fine-tuning jobs as OpenAI's API has them, tuning jobs as Vertex AI's has them; both see the
same jobs. Send a key as `Authorization: Bearer KEY` where keys are configured; each sees what is its own."""
SAFE_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}
API_HEADERS = {"cache-control": "no-store", "content-security-policy": "default-src 'none'; sandbox"}
"""For what is no page: nothing in an answer is ever shown as one, and no proxy keeps it."""


def create_service_app(backend: Backend) -> FastAPI:
    """The ASGI app."""
    app = FastAPI(title="raytune_llm tuning", version=version("raytune-llm"), description=DESCRIPTION, redoc_url=None)
    app.state.backend = backend
    # the last one added is the first to see a request
    app.add_middleware(
        ServiceBounds,
        body_bytes=backend.body_bytes,
        max_file_bytes=backend.service.max_file_bytes,
        refuse=Refusal,
    )
    app.add_middleware(AuthMiddleware, key_hashes=backend.key_hashes, refuse=Refusal, open_paths=backend.open_paths)
    if not backend.key_hashes:
        app.add_middleware(OwnMachineMiddleware, refuse=Refusal)
    app.add_middleware(HeadersMiddleware)
    add_error_handlers(app)

    @app.get("/healthz", tags=["service"], summary="Whether the service answers; needs no key")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok"}

    for router in (files.router, fine_tuning.router, events.router):
        app.include_router(router, responses=OPENAI_REFUSALS)
    for router in vertex.routers():
        app.include_router(router, responses=GOOGLE_REFUSALS)
    for router in backend.more:
        app.include_router(router)
    return app


class HeadersMiddleware:
    """Adds headers that keep browsers safe, where an answer has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        added = {**SAFE_HEADERS, **(API_HEADERS if scope.get("path", "").startswith("/v1") else {})}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in added.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sent if scope["type"] == "http" else send)
