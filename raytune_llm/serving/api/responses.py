"""Response bodies in OpenAI's format, whole and streamed, for chat and text completions."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from raytune_llm.serving.api.echo import Echo
from raytune_llm.serving.api.logprobs import logprob_lists
from raytune_llm.serving.api.tool_format import Call
from raytune_llm.serving.api.tools import CallReader
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.engine.base import Delta, Finish, TokenLogprob, TopToken
from raytune_llm.serving.engine.prompts import Prompt

OWNER = "raytune_llm"
Json = dict[str, Any]


class Choice(Protocol):
    """One of the answers to a request."""

    def opening(self) -> list[Json]:
        """Pieces before the first text."""
        ...

    def pieces(self, delta: Delta) -> list[Json]:
        """What is streamed of a delta."""
        ...

    def whole(self, deltas: Sequence[Delta]) -> Json:
        """An answer that isn't streamed."""
        ...


class Shape:
    """What all pieces of a response have around their choices; one object per response."""

    def __init__(
        self, prefix: str, kind: str, streamed_kind: str, model: str, prompts: Sequence[Prompt] | None
    ) -> None:
        """`prompts`: those to return, None for none."""
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._kind, self._streamed_kind = kind, streamed_kind
        self._prompts = {} if prompts is None else {"prompts": [{"form": p.form, "text": p.text} for p in prompts]}

    def whole(self, choices: Sequence[Json], usage: Json) -> Json:
        return {**self._head, "object": self._kind, "choices": [*choices], "usage": usage, **self._prompts}

    def event(self, choice: Json) -> Json:
        """One streamed piece; the first has the prompts."""
        prompts, self._prompts = self._prompts, {}
        return {**self._head, "object": self._streamed_kind, "choices": [choice], **prompts}

    def usage_event(self, usage: Json) -> Json:
        """The event with the usage, after all pieces."""
        return {**self._head, "object": self._streamed_kind, "choices": [], "usage": usage}


def chat_shape(model: str, prompts: Sequence[Prompt] | None) -> Shape:
    return Shape("chatcmpl", "chat.completion", "chat.completion.chunk", model, prompts)


def completion_shape(model: str, prompts: Sequence[Prompt] | None) -> Shape:
    return Shape("cmpl", "text_completion", "text_completion", model, prompts)


class ChatChoice:
    """A message, with the calls of tools that its text has."""

    def __init__(self, index: int, *, wants_logprobs: bool, reader: CallReader | None) -> None:
        """`reader`: None where no tools are offered."""
        self._index, self._wants_logprobs, self._reader = index, wants_logprobs, reader

    def whole(self, deltas: Sequence[Delta]) -> Json:
        text, finish = joined(deltas), finish_of(deltas)
        calls: list[Call] = []
        if self._reader is not None:
            text, calls = self._reader.whole(text)
        message: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": self._reason(finish, calls),
        }

    def opening(self) -> list[Json]:
        return [self._piece({"role": "assistant", "content": ""})]

    def pieces(self, delta: Delta) -> list[Json]:
        text = delta.text
        calls: list[Call] = []
        if self._reader is not None:
            text = self._reader.add(text)
            if delta.finish is not None:
                rest, calls = self._reader.end()
                text += rest
        found = []
        if text or delta.logprobs:
            found.append(self._piece({"content": text} if text else {}, logprobs=self._logprobs(delta.logprobs)))
        if calls:
            found.append(self._piece({"tool_calls": [{"index": i, **_call(call)} for i, call in enumerate(calls)]}))
        if delta.finish is not None:
            found.append(self._piece({}, finish=self._reason(delta.finish, calls)))
        return found

    def _reason(self, finish: Finish, calls: Sequence[Call]) -> str:
        return finish.value if self._reader is None else self._reader.reason(finish, calls)

    def _piece(self, delta: Json, *, finish: str | None = None, logprobs: Json | None = None) -> Json:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Json | None:
        if not self._wants_logprobs:
            return None
        content = [{**_token(entry), "top_logprobs": [_token(top) for top in entry.top]} for entry in logprobs]
        return {"content": content, "refusal": None}


class CompletionChoice:
    """A text, in the same format whole and streamed."""

    def __init__(self, index: int, *, wants_logprobs: bool, echo: Echo | None) -> None:
        """`echo`: the prompt, where the text begins with it."""
        self._index, self._wants_logprobs, self._echo = index, wants_logprobs, echo
        self._offset = 0 if echo is None else len(echo.text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def whole(self, deltas: Sequence[Delta]) -> Json:
        prompt = [entry for delta in deltas for entry in delta.prompt_logprobs]
        logprobs = tuple(entry for delta in deltas for entry in delta.logprobs)
        return self.pieces(Delta(joined(deltas), 0, logprobs, finish_of(deltas), tuple(prompt)))[0]

    def opening(self) -> list[Json]:
        return []

    def pieces(self, delta: Delta) -> list[Json]:
        echo, self._echo = self._echo, None
        logprobs = self._logprobs(delta.logprobs) if self._wants_logprobs else None
        if echo is not None and logprobs is not None:
            own = echo.logprobs(delta.prompt_logprobs)
            logprobs = {name: own[name] + values for name, values in logprobs.items()}
        text = ("" if echo is None else echo.text) + delta.text
        reason = None if delta.finish is None else delta.finish.value
        return [{"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason}]

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> Json:
        offsets = []
        for entry in logprobs:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(entry.data))
        return {**logprob_lists(logprobs), "text_offset": offsets}


def joined(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def finish_of(deltas: Sequence[Delta]) -> Finish:
    finish = deltas[-1].finish
    assert finish is not None
    return finish


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


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
