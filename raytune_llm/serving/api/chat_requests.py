"""POST /v1/chat/completions: conversations, tools that the answer may call, and their results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from raytune_llm.data.records import Message
from raytune_llm.serving.api.errors import invalid
from raytune_llm.serving.api.formats import DEEPEST, Schema, is_too_deep
from raytune_llm.serving.api.requests import NonEmpty, Options, Prose

MOST_MESSAGES = 4096
"""Also of the parts of a message."""
MOST_TOOLS = 512
"""Also of the calls of a message."""
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


UNUSED = Field(None, exclude=True, description="Accepted and not used")


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Prose
    cache_control: Any = UNUSED


def _text_or_parts(value: object) -> object:
    if value is None or isinstance(value, str | list):
        return value
    raise ValueError('must be a text, or a list of parts {"type": "text", "text": …}')


Content = Annotated[
    Prose | Annotated[list[TextPart], Field(max_length=MOST_MESSAGES, fail_fast=True)] | None,
    BeforeValidator(_text_or_parts),
]


class CalledFunction(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: FunctionName
    arguments: Prose


class ToolCall(BaseModel):
    """A call in an assistant's message."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: NonEmpty
    type: Literal["function"] = "function"
    function: CalledFunction

    def call(self, where: str) -> dict[str, Any]:
        """As chat templates take it. Raises ApiError when the arguments are no JSON object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if is_too_deep(arguments):
            message = f"{where}.function.arguments: they are nested in more than {DEEPEST} levels"
            raise invalid(message, param="messages")
        if not isinstance(arguments, dict):
            raise invalid(f"{where}.function.arguments: must be the text of a JSON object", param="messages")
        return {"type": "function", "id": self.id, "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = Field(None, description="Of a tool message, the function; else accepted and not used")
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = Field(None, description="Accepted and not used, as are the following")
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    reasoning_content: str | None = None
    cache_control: Any = None

    def message(self, where: str, called: dict[str, str]) -> Message:
        """`called`: the function of each call so far, by id. Raises ApiError for what a role doesn't have."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        if self.content is None and (self.role != "assistant" or self.tool_calls is None):
            raise invalid(f"{where}.content: a message of role {self.role} has a content", param="messages")
        if self.tool_calls and self.role != "assistant":
            raise invalid(f"{where}.tool_calls: only messages of role assistant have them", param="messages")
        if self.role == "tool":
            if self.tool_call_id is None:
                raise invalid(f"{where}.tool_call_id: a message of role tool has the id of its call", param="messages")
            return Message("tool", content, call_id=self.tool_call_id, name=self.name or called.get(self.tool_call_id))
        role = "system" if self.role == "developer" else self.role
        if not self.tool_calls:
            return Message(role, content)
        called |= {call.id: call.function.name for call in self.tool_calls}
        calls = [call.call(f"{where}.tool_calls[{i}]") for i, call in enumerate(self.tool_calls)]
        return Message(role, content, tool_calls=json.dumps(calls, ensure_ascii=False))


class Function(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: FunctionName
    description: Prose | None = None
    parameters: Schema | None = Field(None, description="JSON schema of the arguments")
    strict: bool | None = Field(None, description="Accepted; with tool_choice required or named, always so")


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function
    cache_control: Any = UNUSED


class NamedFunction(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: FunctionName


class NamedTool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: NamedFunction


def _tool_choice(value: object) -> object:
    if value is None or isinstance(value, dict) or value in ("none", "auto", "required"):
        return value
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}')


class ChatRequest(Options):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[Literal["none", "auto", "required"] | NamedTool | None, BeforeValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered_tools(self) -> list[Function]:
        """The functions that this answer may call."""
        if not self.tools or self.tool_choice == "none":
            return []
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return [tool.function for tool in self.tools if named in (None, tool.function.name)]

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation, with its tools. Raises ApiError for a message that isn't complete."""
        called: dict[str, str] = {}
        turns = [message.message(f"messages[{i}]", called) for i, message in enumerate(self.messages)]
        if self.tools and self.tool_choice != "none":
            shown = [tool.model_dump(exclude_none=True) for tool in self.tools]
            turns[0] = replace(turns[0], tools=json.dumps(shown, ensure_ascii=False))
        return tuple(turns)

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs is only allowed with logprobs=true", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise invalid("max_tokens and max_completion_tokens differ; give one", param="max_completion_tokens")
        if self.prompt_form == "raw":
            raise invalid("prompt_form: a conversation has no raw form; chat or pair", param="prompt_form")
        self._check_tools(self.tools or ())
        for text in (part for turn in self.prompt for part in (turn.tools, turn.tool_calls, turn.name) if part):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise invalid("messages and tools: a lone surrogate is no character", param="messages")

    def _check_tools(self, tools: Sequence[Tool]) -> None:
        names = [tool.function.name for tool in tools]
        if len(set(names)) < len(names):
            raise invalid("tools: two functions have the same name", param="tools")
        if self.must_call and not self.offered_tools:
            wanted = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else "a function"
            raise invalid(f"tool_choice wants a call of {wanted}, which is not in tools", param="tool_choice")
        if self.must_call and self.json_schema is not None:
            raise invalid("response_format can't be combined with a tool_choice that requires a call", param="tools")
