"""The HTTP API: OpenAI's models, chat completions, text completions and responses over one engine.

Without Ray: deploy/replica.py runs it in Ray Serve, tests in a test client.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from raytune_llm.serving.api import errors
from raytune_llm.serving.api.admission import OPEN_REQUEST_IN_SCOPE, AdmissionMiddleware
from raytune_llm.serving.api.answering import Service
from raytune_llm.serving.api.auth import AuthMiddleware
from raytune_llm.serving.api.bounds import BoundsMiddleware, Refuse
from raytune_llm.serving.api.chat_requests import ChatRequest
from raytune_llm.serving.api.metrics import CONTENT_TYPE, Merged, Metrics
from raytune_llm.serving.api.requests import CompletionRequest
from raytune_llm.serving.api.response_requests import ResponseRequest
from raytune_llm.serving.api.responses import model_list


def create_app(
    service: Service,
    *,
    key_hashes: tuple[str, ...],
    cors_origins: tuple[str, ...] = (),
    is_behind_service: bool = False,
) -> FastAPI:
    """The ASGI app. `cors_origins`: web pages that may ask it from a browser; is_behind_service: as AuthMiddleware."""
    app = FastAPI(title="raytune_llm", redoc_url=None)
    limits, refuse = service.limits, partial(_refused, service.metrics)
    # the last one added is the first to see a request
    app.add_middleware(
        AdmissionMiddleware,
        most_open=limits.max_open_requests,
        has_several_keys=len(key_hashes) > 1 or is_behind_service,
        refuse=refuse,
    )
    app.add_middleware(
        BoundsMiddleware,
        max_body_bytes=limits.max_body_bytes,
        body_timeout_seconds=limits.body_timeout_seconds,
        request_timeout_seconds=limits.request_timeout_seconds,
        refuse=refuse,
    )
    app.add_middleware(AuthMiddleware, key_hashes=key_hashes, refuse=refuse, is_behind_service=is_behind_service)
    if cors_origins:  # first, since browsers ask without a key whether they may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    _add_error_handlers(app, refuse)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        families = [*service.metrics.families(service.engine), *await service.peer_metrics()]
        return Response(Merged(families).text(), media_type=CONTENT_TYPE)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        service.engine.check_health()
        return {"status": "ok", "running": service.engine.num_running}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": model_list(service.models.catalog)}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        for found in model_list(service.models.catalog):
            if found["id"] == name:
                return found
        raise errors.ApiError(404, f"the model '{name}' is not served here", code="model_not_found", param="model")

    @app.post("/v1/chat/completions")
    async def chat_completions(request: ChatRequest, http: Request) -> Response:
        return await service.chat(request, http.scope[OPEN_REQUEST_IN_SCOPE])

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        return await service.complete(request, http.scope[OPEN_REQUEST_IN_SCOPE])

    @app.post("/v1/responses")
    async def responses(request: ResponseRequest, http: Request) -> Response:
        return await service.respond(request, http.scope[OPEN_REQUEST_IN_SCOPE])

    return app


def _refused(metrics: Metrics, error: errors.ApiError) -> Response:
    metrics.refused(error.status)
    return error.response()


def _add_error_handlers(app: FastAPI, answer: Refuse) -> None:
    @app.exception_handler(errors.ApiError)
    async def api_error(request: Request, error: errors.ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return answer(errors.from_validation(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        return answer(errors.from_status(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        return answer(errors.internal())
