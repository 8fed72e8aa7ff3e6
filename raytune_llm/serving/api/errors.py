"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, with their HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

TYPES = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 503: "unavailable"}


class ApiError(Exception):
    """An error for the client. `param` is the offending field of its request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # ASCII, so that a lone surrogate quoted from the request can't break the answer
        return Response(
            json.dumps(self.body()),
            status_code=self.status,
            headers=dict(self.headers or {}),
            media_type="application/json",
        )


def invalid(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


def internal() -> ApiError:
    return ApiError(
        500, "the server failed on this request; find the cause in its log by x-request-id", code="internal_error"
    )


def from_status(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> ApiError:
    """For errors of the framework: no such route, method not allowed, body too large."""
    return ApiError(status, message, code=CODES.get(status, "invalid_request"), headers=headers)


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's validation errors, naming the field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return invalid(
            f"the request body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}",
            code="invalid_json",
        )
    path = [str(part) for part in first["loc"] if part != "body"]
    param = path[0] if path else None
    where = ".".join(path) if path else "the request body (a JSON object, sent as Content-Type: application/json)"
    if first["type"] == "missing":
        return invalid(f"missing required parameter: {where}", param=param, code="missing_required_parameter")
    return invalid(
        f"{where}: {first['msg']}", param=param, code="invalid_type" if "type" in first["type"] else "invalid_value"
    )
