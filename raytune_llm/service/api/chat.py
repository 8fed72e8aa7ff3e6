"""Chats and texts by the offered bases and by an owner's own models, and the list of both.

A request goes to the app of the base that its model belongs to (answers/). It is sent on with the model's full id in
place of the name, so that what answers is what was looked up for its owner.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytune_llm.service.answers.base import Answering
from raytune_llm.service.models import OwnedModels
from raytune_llm.service.records import owner_of
from raytune_llm.serving.api.auth import CLIENT_HEADER, KEY_IN_SCOPE
from raytune_llm.serving.api.errors import ApiError, invalid

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""What is sent on."""
SENT_ON = (b"content-type", b"accept", b"user-agent", b"x-request-id")
"""The headers that are sent on: no key, and nothing that the app behind could take for an order."""
KEPT_IN_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "client",
    "server",
)
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {"model": {"type": "string", "description": "A base, or a tuned model of yours."}},
                }
            }
        },
    }
}
SUMMARIES = ("Answer a chat", "Continue a text", "Answer a chat, as the Responses API has it")


def chat_router(models: OwnedModels, answering: Answering) -> APIRouter:
    """The routes. They need KEY_IN_SCOPE, and a bound of what a body may have."""
    router = APIRouter(tags=["models"])

    async def answer(request: Request) -> Response:
        content = _content(await request.body())
        found = await asyncio.to_thread(models.find, content["model"], owner(request))
        return SentOn(answering.app_of(found.base), json.dumps({**content, "model": found.id}).encode())

    for path, summary in zip(PATHS, SUMMARIES, strict=True):
        router.add_api_route(
            path, answer, methods=["POST"], summary=summary, operation_id=path[4:].replace("/", "_"), openapi_extra=BODY
        )

    @router.get("/v1/models", summary="List what you can ask: the bases, and your tuned models")
    def listed(owner: Owner) -> dict[str, Any]:
        return {"object": "list", "data": models.listing(owner)}

    @router.get("/v1/models/{name:path}", summary="One of them")
    def retrieved(name: str, owner: Owner) -> dict[str, Any]:
        return models.model(name, owner)

    @router.delete("/v1/models/{name:path}", summary="Not possible: versions are kept")
    def deleted(name: str, owner: Owner) -> dict[str, Any]:
        models.find(name, owner)
        raise ApiError(
            405,
            "tuned models are kept: each is a version of the registry, which another may continue or be compared with; "
            "whoever runs this service can remove its folder",
            code="method_not_allowed",
            headers={"allow": "GET"},
        )

    return router


def owner(request: Request) -> str:
    """Who asks, by the request's key."""
    return owner_of(request.scope[KEY_IN_SCOPE])


Owner = Annotated[str, Depends(owner)]


class SentOn(Response):
    """The answer of another app to the same request, with another body."""

    def __init__(self, app: ASGIApp, content: bytes) -> None:
        super().__init__()
        self._app, self._content = app, content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_been_read = False

        async def received() -> Message:
            nonlocal has_been_read
            if has_been_read:
                return await receive()
            has_been_read = True
            return {"type": "http.request", "body": self._content, "more_body": False}

        # of its own, since frameworks keep their state in a scope
        inner = {name: scope[name] for name in KEPT_IN_SCOPE if name in scope}
        headers = [(name, value) for name, value in scope["headers"] if name in SENT_ON]
        headers.append((b"content-length", str(len(self._content)).encode()))
        headers.append((CLIENT_HEADER.encode(), scope[KEY_IN_SCOPE].encode()))
        await self._app({**inner, "root_path": "", "headers": headers}, received, send)


def _content(body: bytes) -> dict[str, Any]:
    """The JSON object of a request, with a text as its model. Raises ApiError 400."""
    try:
        content = json.loads(body)
        json.dumps(content)  # which allows less depth
    except (ValueError, RecursionError) as error:
        raise invalid(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise invalid("the request body must be a JSON object", code="invalid_type")
    if "model" not in content:
        raise invalid("missing required parameter: model", param="model", code="missing_required_parameter")
    if not isinstance(content["model"], str):
        raise invalid("model: must be a text", param="model", code="invalid_type")
    return content
