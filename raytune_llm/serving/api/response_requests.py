"""POST /v1/responses in its basic form: text in, text out, nothing stored. The rest is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from raytune_llm.serving.api.chat_requests import MOST_MESSAGES, ChatRequest
from raytune_llm.serving.api.errors import invalid
from raytune_llm.serving.api.formats import ObjectFormat, Schema, TextFormat
from raytune_llm.serving.api.requests import NonEmpty, Prose

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "background": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "include": ([],),
    "reasoning": ({},),
    "truncation": ("disabled",),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
}
"""Known but unsupported parameters and their neutral values; null is always neutral."""


class InputPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["input_text", "output_text"]
    text: Prose


def _text_or_parts(value: object) -> object:
    if isinstance(value, str | list):
        return value
    raise ValueError('must be a text, or a list of parts {"type": "input_text", "text": …}')


Parts = Annotated[list[InputPart], Field(max_length=MOST_MESSAGES, fail_fast=True)]


class InputMessage(BaseModel):
    """A message, or one of an earlier response."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Prose | Parts, BeforeValidator(_text_or_parts)]
    id: str | None = Field(None, description="Accepted and not used, as are the following")
    status: str | None = None
    phase: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class SchemaTextFormat(BaseModel):
    """A schema as the responses API has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["json_schema"]
    name: str = Field(min_length=1, description="Accepted and not used")
    description: str | None = Field(None, description="Accepted and not used")
    schema_: Schema = Field(alias="schema")
    strict: bool | None = Field(None, description="Answers satisfy the schema in any case")


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Annotated[TextFormat | ObjectFormat | SchemaTextFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Accepted and not used")


def _text_or_messages(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and value):
        return value
    raise ValueError("must be a text, or a list of messages")


Messages = Annotated[list[InputMessage], Field(max_length=MOST_MESSAGES - 1, fail_fast=True)]
"""One fewer than a chat may have, for the instructions."""


class ResponseRequest(BaseModel):
    """POST /v1/responses"""

    model_config = ConfigDict(extra="allow", strict=True)

    model: NonEmpty
    input: Annotated[Prose | Messages, BeforeValidator(_text_or_messages)]
    instructions: Prose | None = Field(None, description="A system message before the input")
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; null is 1")
    top_p: float | None = Field(None, ge=0, le=1, description="null is 1")
    text: TextOptions | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = Field(None, description="Returned")
    user: str | None = Field(None, description="Accepted and not used, as are the following")
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat request. Raises ApiError for unknown and unsupported parameters."""
        self._check()
        given = [("user", self.input)] if isinstance(self.input, str) else [(one.role, one.text) for one in self.input]
        if self.instructions is not None:
            given.insert(0, ("system", self.instructions))
        fields = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in given],
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
            "response_format": self._format(),
        }
        return ChatRequest.model_validate(fields)

    def _format(self) -> dict[str, Any] | None:
        """As chat requests have it."""
        wanted = None if self.text is None else self.text.format
        if not isinstance(wanted, SchemaTextFormat):
            return None if wanted is None else wanted.model_dump()
        return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}

    def _check(self) -> None:
        for name, value in (self.model_extra or {}).items():
            if name not in NEUTRAL:
                raise invalid(f"unknown parameter: {name}", param=name, code="unknown_parameter")
            if value is not None and not any(json.dumps(value) == json.dumps(n) for n in NEUTRAL[name]):
                why = ", which stores no responses" if name in STORED else ""
                raise invalid(
                    f"{name} is not offered by this endpoint{why}; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )


STORED = ("store", "previous_response_id", "conversation", "background", "prompt")
"""Parameters that need stored responses."""
