"""What Ray Serve's HTTP proxy is given before it listens: bounded connections, requests without headers that are orders
to Ray, and errors in OpenAI's shape.

Ray Serve calls `middlewares` in each proxy process whose environment has
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=raytune_llm.serving.proxy_middlewares; cluster.py sets it for the sessions of
jobs, and whoever runs `ray start` for `serve deploy` sets it there.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_llm.compat import use_http_protocol
from raytune_llm.serving.api.errors import ApiError, internal
from raytune_llm.serving.deploy.connections import BoundedConnection, allow_open_files

HEALTH_PATH = "/healthz"
RAYS_OWN_PATHS = "/-/"
REQUEST_ID = "x-request-id"
RETRY_AFTER = {"retry-after": "5"}
ORDERS = (b"x_request_disconnect_disabled", b"x_request_timeout_seconds", b"serve_multiplexed_model_id")
"""Headers by which a client could decode on after it has left, for ever, or at a replica of its choice; Ray reads - as
_."""


def middlewares() -> list[Middleware]:
    """Prepare this process for its proxy."""
    allow_open_files()
    use_http_protocol(BoundedConnection)
    return [Middleware(ProxyFront)]


def _is_order(name: bytes) -> bool:
    return name.lower().replace(b"-", b"_") in ORDERS


class ProxyFront:
    """Ray Serve obeys some headers of any client. Its own errors are plain text, or nothing at all; and while no
    application is there, 404."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._has_served = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": [header for header in scope["headers"] if not _is_order(header[0])]}
        if scope["type"] != "http" or scope["path"].startswith(RAYS_OWN_PATHS):
            await self._app(scope, receive, send)
            return
        has_begun = is_replaced = False

        async def sent(message: Message) -> None:
            nonlocal has_begun, is_replaced
            if message["type"] == "http.response.start":
                has_begun = True
                headers = Headers(raw=message.get("headers", []))
                is_replaced = message["status"] >= 400 and headers.get("content-type", "").startswith("text/plain")
                if is_replaced:
                    response = self._response(scope["path"], message["status"])
                    response.headers[REQUEST_ID] = headers.get(REQUEST_ID, "")
                    await response(scope, receive, send)
                else:
                    self._has_served = True
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, sent)
        if not has_begun:
            await internal().response()(scope, receive, send)

    def _response(self, path: str, status: int) -> Response:
        if status == 404 and path == HEALTH_PATH:
            return JSONResponse({"status": self._state}, 503, RETRY_AFTER)
        return self._error(status).response()

    @property
    def _state(self) -> str:
        """Without an application."""
        return "draining" if self._has_served else "starting"

    def _error(self, status: int) -> ApiError:
        if status == 404:
            message = f"this endpoint is {self._state}; try again later"
            return ApiError(503, message, code="unavailable", headers=RETRY_AFTER)
        if status == 408:
            message = "the request took too long, waiting included; try again later"
            return ApiError(408, message, code="request_timeout")
        if status in (429, 503):
            message = "this endpoint is overloaded, or a replica is being replaced; try again later"
            return ApiError(503, message, code="overloaded", headers=RETRY_AFTER)
        return internal()
