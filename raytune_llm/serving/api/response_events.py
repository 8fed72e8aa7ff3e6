"""Bodies and events of /v1/responses, as OpenAI's clients read them: one message with one text."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.response_requests import ResponseRequest
from raytune_llm.serving.api.responses import Json, finish_of, joined
from raytune_llm.serving.engine.base import Delta, Finish


class ResponseShape:
    """One response."""

    def __init__(self, model: str, request: ResponseRequest, prompt_tokens: int) -> None:
        self._id, self._item_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created, self._model, self._request = int(time.time()), model, request
        self._prompt_tokens = prompt_tokens
        self._sequence = 0

    def whole(self, deltas: Sequence[Delta]) -> Json:
        """The body of a response that has ended."""
        num_tokens = sum(delta.num_tokens for delta in deltas)
        return self._ended(joined(deltas), finish_of(deltas), num_tokens)

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncIterator[Json]:
        """Those of a streamed response, in OpenAI's order."""
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        begun = self._body("in_progress", [], None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = {**self._item("", "in_progress"), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=_part(""))
        text, num_tokens, finish = "", 0, Finish.stop
        async with aclosing(deltas):
            async for delta in deltas:
                text, num_tokens, finish = text + delta.text, num_tokens + delta.num_tokens, delta.finish or finish
                if delta.text:
                    yield self._event("response.output_text.delta", **place, delta=delta.text, logprobs=[])
        yield self._event("response.output_text.done", **place, text=text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=_part(text))
        ended = self._ended(text, finish, num_tokens)
        yield self._event("response.output_item.done", output_index=0, item=ended["output"][0])
        yield self._event(f"response.{ended['status']}", response=ended)

    def failed(self, error: ApiError) -> Json:
        """The event of an error after the start."""
        return self._event("error", **{name: value for name, value in error.body()["error"].items() if name != "type"})

    def _ended(self, text: str, finish: Finish, num_tokens: int) -> Json:
        status = "completed" if finish is Finish.stop else "incomplete"
        counts = {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + num_tokens,
        }
        body = self._body(status, [self._item(text, status)], counts)
        return body | {"incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"}}

    def _body(self, status: str, output: Sequence[Json], counts: Json | None) -> Json:
        request = self._request
        wanted = None if request.text is None else request.text.format
        text_format = {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": [*output],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": text_format},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": counts,
        }

    def _item(self, text: str, status: str) -> Json:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(text)],
        }

    def _event(self, kind: str, **content: object) -> Json:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **content}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
