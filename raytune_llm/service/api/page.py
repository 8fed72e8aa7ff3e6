"""The page at /tuning: its files, which hold no data and need no key, and the data that its scripts ask for, which do.

The page is plain HTML, CSS and modules; nothing is built and nothing comes from elsewhere. Its scripts create, list and
stop jobs by the routes that any client has.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from raytune_llm.service.api.page_checks import CheckRequest, DataChecks, EstimateRequest
from raytune_llm.service.api.page_jobs import JobPages
from raytune_llm.service.records import owner_of
from raytune_llm.serving.api.auth import KEY_IN_SCOPE
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.stores.json import to_json

ASSETS = {
    "index.html": "text/html",
    "style.css": "text/css",
    "tokens.css": "text/css",
    "icon.svg": "image/svg+xml",
    "api.js": "text/javascript",
    "app.js": "text/javascript",
    "chart.js": "text/javascript",
    "detail.js": "text/javascript",
    "dom.js": "text/javascript",
    "findings.js": "text/javascript",
    "form.js": "text/javascript",
    "format.js": "text/javascript",
    "jobs.js": "text/javascript",
    "results.js": "text/javascript",
    "try.js": "text/javascript",
    "upload.js": "text/javascript",
}
"""Every file of the page, with its media type."""
SHARED = {"tokens.css": "raytune_llm.data.doctor"}
"""Files that are the data report's too."""
OPEN_PATHS = ("/tuning", *(f"/tuning/{name}" for name in ASSETS))
"""What is answered without a key."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Of a job's files: a report has styles and no scripts, and gets no origin."""
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def page_files() -> APIRouter:
    """The routes of the page's own files."""
    router = APIRouter(include_in_schema=False)

    @router.get("/tuning")
    def page(request: Request) -> Response:
        return _asset("index.html", request)

    @router.get("/tuning/{name}")
    def asset(name: str, request: Request) -> Response:
        if name not in ASSETS:
            raise _missing("file")
        return _asset(name, request)

    return router


def page_data(jobs: JobPages, checks: DataChecks) -> APIRouter:
    """The routes of what the page shows, for the owner of the request's key."""
    router = APIRouter(prefix="/tuning/api", include_in_schema=False)

    @router.get("/service")
    def service(request: Request) -> Response:
        return _json({**checks.offers(), "usage": jobs.usage(_owner(request))}, request)

    @router.get("/jobs")
    def summaries(request: Request, after: str | None = None) -> Response:
        return _json(jobs.summaries(_owner(request), after), request)

    @router.get("/jobs/{id}")
    def detail(id: str, request: Request) -> Response:
        found = jobs.detail(id, _owner(request))
        if found is None:
            raise _missing("job")
        return _json(found, request)

    @router.get("/jobs/{id}/files/{name}")
    def file(id: str, name: str, request: Request) -> Response:
        found = jobs.file(id, name, _owner(request))
        if found is None:
            raise _missing("file")
        headers = SAFE | {"content-security-policy": FILE_POLICY, "cache-control": "no-store"}
        return Response(found[0], media_type=found[1], headers=headers)

    @router.post("/checks", status_code=202)
    def check(wanted: CheckRequest, request: Request) -> Response:
        return _json(checks.start(wanted, _owner(request)), request, status=202)

    @router.get("/checks/{id}")
    def checked(id: str, request: Request) -> Response:
        found = checks.found(id, _owner(request))
        if found is None:
            raise _missing("check")
        return _json(found, request)

    @router.post("/checks/{id}/estimate")
    def estimate(id: str, wanted: EstimateRequest, request: Request) -> Response:
        found = checks.estimate(id, wanted, _owner(request))
        if found is None:
            raise _missing("check")
        return _json(found, request)

    return router


@cache
def _content(name: str) -> tuple[bytes, str]:
    """An asset and its tag."""
    package = SHARED.get(name, "raytune_llm.service.page")
    content = resources.files(package).joinpath(name).read_bytes()
    return content, _tag(content)


def _asset(name: str, request: Request) -> Response:
    content, tag = _content(name)
    headers = SAFE | {"content-security-policy": PAGE_POLICY, "cache-control": "no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=ASSETS[name], headers=headers)


def _json(value: Any, request: Request, *, status: int = 200) -> Response:
    """Data, or 304 where the client has it already."""
    content = to_json(value).encode()
    headers = SAFE | {"cache-control": "no-store", "etag": _tag(content)}
    if request.method == "GET" and request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, status_code=status, media_type="application/json", headers=headers)


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _owner(request: Request) -> str:
    return owner_of(request.scope[KEY_IN_SCOPE])


def _missing(what: str) -> ApiError:
    return ApiError(404, f"no such {what}", code="not_found")
