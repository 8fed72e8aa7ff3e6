"""Response bodies in OpenAI's format, whole and streamed, for chat and text completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.engine.base import Finish, TokenLogprob, TopToken

OWNER = "raytune_llm"
Json = dict[str, Any]


class Shape(Protocol):
    """The format of one kind of answer. One object per answer."""

    def whole(self, text: str, finish: Finish, logprobs: Sequence[TokenLogprob], usage: Json) -> Json:
        """The body of an answer that isn't streamed."""
        ...

    def opening(self) -> list[Json]:
        """Events before the first text."""
        ...

    def event(self, text: str, finish: Finish | None, logprobs: Sequence[TokenLogprob]) -> Json:
        """One streamed piece."""
        ...

    def usage_event(self, usage: Json) -> Json:
        """The event with the usage, after all pieces."""
        ...


class ChatShape:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, model: str, *, wants_logprobs: bool) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._wants_logprobs = wants_logprobs

    def whole(self, text: str, finish: Finish, logprobs: Sequence[TokenLogprob], usage: Json) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(logprobs), "finish_reason": finish.value}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def opening(self) -> list[Json]:
        return [self._chunk({"role": "assistant", "content": ""}, None, None)]

    def event(self, text: str, finish: Finish | None, logprobs: Sequence[TokenLogprob]) -> Json:
        return self._chunk({"content": text} if text else {}, finish, self._logprobs(logprobs))

    def usage_event(self, usage: Json) -> Json:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(self, delta: Json, finish: Finish | None, logprobs: Json | None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish and finish.value}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Json | None:
        if not self._wants_logprobs:
            return None
        content = [{**_token(entry), "top_logprobs": [_token(top) for top in entry.top]} for entry in logprobs]
        return {"content": content, "refusal": None}


class CompletionShape:
    """text_completion, in the same format whole and streamed."""

    def __init__(self, model: str, *, wants_logprobs: bool) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._wants_logprobs = wants_logprobs
        self._offset = 0

    def whole(self, text: str, finish: Finish, logprobs: Sequence[TokenLogprob], usage: Json) -> Json:
        return {**self.event(text, finish, logprobs), "usage": usage}

    def opening(self) -> list[Json]:
        return []

    def event(self, text: str, finish: Finish | None, logprobs: Sequence[TokenLogprob]) -> Json:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": finish and finish.value,
        }
        return {**self._head, "choices": [choice]}

    def usage_event(self, usage: Json) -> Json:
        return {**self._head, "choices": [], "usage": usage}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Json | None:
        if not self._wants_logprobs:
            return None
        offsets = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(entry.text)
        return {
            "tokens": [entry.text for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{top.text: top.logprob for top in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def model_list(catalog: Catalog) -> list[Json]:
    """One object per name: `root` is the version or base with that name, `parent` the base of a tuned version."""
    base = catalog.entries[0].id
    return [
        {
            "id": name,
            "object": "model",
            "created": entry.created,
            "owned_by": OWNER,
            "root": entry.id,
            "parent": None if entry.version is None else base,
        }
        for entry in catalog.entries
        for name in entry.names
    ]


def _token(token: TokenLogprob | TopToken) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}
