"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}, with their HTTP status."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

TYPES = {401: "authentication_error", 408: "timeout_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large", 503: "unavailable"}

RETRY_AFTER_SECONDS = 2
"""When to come back to a full endpoint."""


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


def overloaded() -> ApiError:
    message = f"too many requests are waiting at this endpoint; try again in {RETRY_AFTER_SECONDS} s"
    return ApiError(503, message, code="overloaded", headers={"retry-after": str(RETRY_AFTER_SECONDS)})


def overloaded_by_key() -> ApiError:
    message = f"this key has as many open requests here as one key may have; try again in {RETRY_AFTER_SECONDS} s"
    return ApiError(503, message, code="overloaded", headers={"retry-after": str(RETRY_AFTER_SECONDS)})


def internal() -> ApiError:
    return ApiError(
        500, "the server failed on this request; find the cause in its log by x-request-id", code="internal_error"
    )


PATH = re.compile(r"(?<![\w./])(?:[a-z][a-z0-9+.-]*:/)?/(?:[^\s/,;:'\"]+/)*(?=[^\s/,;:'\"])")
"""Folders of a file, of this machine or of a bucket."""


def without_paths(error: ApiError) -> ApiError:
    """The same without the folders of the files that it names: clients have no business there."""
    message = PATH.sub("", error.message)
    return ApiError(error.status, message, code=error.code, param=error.param, headers=error.headers)


def from_status(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> ApiError:
    """For errors of the framework: no such route, method not allowed, body too large."""
    return ApiError(status, message, code=CODES.get(status, "invalid_request"), headers=headers)


def from_validation(errors: Sequence[Any], body: Any = None) -> ApiError:
    """The first of pydantic's validation errors of a request's body, in plain words and naming the field."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return invalid(
            f"the request body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}",
            code="invalid_json",
        )
    # of a value that may have several types, the error that lies deepest, or knows its length, is of the one meant
    paths = [_fields([part for part in error["loc"] if part != "body"], body) for error in errors]
    first, path = max(
        ((error, path) for error, path in zip(errors, paths, strict=True) if path[:1] == paths[0][:1]),
        key=lambda found: (len(found[1]), found[0]["type"] == "too_long"),
    )
    param = str(path[0]) if path else None
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    where = where or "the request body (a JSON object, sent as Content-Type: application/json)"
    if first["type"] == "missing":
        return invalid(f"missing required parameter: {where}", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return invalid(f"unknown parameter: {where}", param=param, code="unknown_parameter")
    message = _in_plain_words(first)
    is_type = "type" in first["type"] or (first["type"] == "value_error" and message.startswith("must be a"))
    code = "invalid_type" if is_type else "invalid_value"
    return invalid(f"{where}: {message}", param=param, code=code)


WORDS = {
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "string_type": "must be a text",
    "union_tag_not_found": "must have a type",
}
"""By pydantic's type of error, where its own words name classes or validators."""


def _in_plain_words(error: Any) -> str:
    if error["type"] == "union_tag_invalid":
        return f"its type must be one of {error['ctx']['expected_tags']}"
    if error["type"] == "too_long":
        return f"must have at most {error['ctx']['max_length']} items"
    own = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return str(WORDS.get(error["type"], own))


def _fields(loc: Sequence[Any], body: Any) -> list[str | int]:
    """The path of a validation error without the names that pydantic gives to the members of unions."""
    path: list[str | int] = []
    here = body
    for place, part in enumerate(loc):
        if isinstance(part, int):
            path.append(part)
            here = here[part] if isinstance(here, list) and part < len(here) else None
        elif isinstance(here, dict) and part in here:
            path.append(part)
            here = here[part]
        elif isinstance(here, dict) and place == len(loc) - 1 and part.isidentifier():
            path.append(part)  # a field that is missing
    return path
