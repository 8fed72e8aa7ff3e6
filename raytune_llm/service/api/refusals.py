"""Errors as answers, in the shape of the API that was asked: OpenAI's, or Google's below /v1/projects."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from raytune_llm.serving.api import errors

GOOGLE_PATHS = re.compile(r"/v1(beta1)?/projects/")
GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    503: "UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIRefusal(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIError


class GoogleError(BaseModel):
    code: int
    message: str
    status: str


class GoogleRefusal(BaseModel):
    """An error in Google's shape."""

    error: GoogleError


OPENAI_REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": OpenAIRefusal}}
GOOGLE_REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": GoogleRefusal}}


class Refusal(Response):
    """An error's answer; its shape depends on the path."""

    def __init__(self, error: errors.ApiError) -> None:
        super().__init__(status_code=error.status)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_google = GOOGLE_PATHS.match(scope["path"]) is not None
        answer = _google(self._error) if is_google else self._error.response()
        await answer(scope, receive, send)


def _google(error: errors.ApiError) -> Response:
    status = GOOGLE_STATUS.get(error.status, "INTERNAL" if error.status >= 500 else "FAILED_PRECONDITION")
    body = {"error": {"code": error.status, "message": error.message, "status": status}}
    # ASCII, so that a lone surrogate quoted from the request can't break the answer
    return Response(
        json.dumps(body),
        status_code=error.status,
        headers=dict(error.headers or {}),
        media_type="application/json",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Whatever is raised for a request is answered in its API's shape."""

    @app.exception_handler(errors.ApiError)
    async def api_error(request: Request, error: errors.ApiError) -> Response:
        return Refusal(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return Refusal(_of_query(error.errors()[0]) or errors.from_validation(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        return Refusal(errors.from_status(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        return Refusal(errors.internal())


def _of_query(error: Any) -> errors.ApiError | None:
    """The error of a query parameter; None for one of the body."""
    if error["loc"][0] != "query":
        return None
    name = str(error["loc"][1])
    return errors.invalid(f"{name}: {error['msg'].replace('Input should be', 'must be')}", param=name)
