"""Request bodies in OpenAI's format; unknown and unsupported parameters are refused by name, never ignored.

OpenAI's parameters that this endpoint doesn't support are accepted at their neutral values (n=1, tools=[]).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raytune_llm.data.records import Message
from raytune_llm.serving.api.errors import invalid
from raytune_llm.serving.engine.base import Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Known but unsupported parameters and their neutral values; null is always neutral."""
LARGEST_SEED = 2**63
LONGEST_STOP = 1000
"""Characters; so much of an answer may be kept back."""


def _without_lone_surrogates(text: str) -> str:
    """JSON can contain half a surrogate pair, which tokenizers reject."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("it contains a lone surrogate, which is no character")
    return text


Prose = Annotated[str, AfterValidator(_without_lone_surrogates)]
NonEmpty = Annotated[Prose, Field(min_length=1)]
StopString = Annotated[Prose, Field(min_length=1, max_length=LONGEST_STOP)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Options(BaseModel, ABC):
    """The parameters of both kinds of request."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: NonEmpty
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; null is 1")
    top_p: float | None = Field(None, ge=0, le=1, description="null is 1")
    max_tokens: int | None = Field(None, ge=1, description="null is the endpoint's limit, or the rest of the context")
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-LARGEST_SEED, lt=LARGEST_SEED)
    user: str | None = Field(None, description="Accepted and not used")
    safety_identifier: str | None = Field(None, description="Accepted and not used")
    metadata: dict[str, str] | None = Field(None, description="Accepted and not used")

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def answer_tokens(self) -> int | None:
        """Longest answer that the client wants, tokens."""
        return self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to return with each chosen one; None for no log-probabilities."""

    def check(self) -> None:
        """Raise ApiError for unknown and unsupported parameters."""
        for name, value in (self.model_extra or {}).items():
            if name not in NEUTRAL:
                raise invalid(f"unknown parameter: {name}", param=name, code="unknown_parameter")
            if value is not None and not any(
                value == n and isinstance(value, bool) == isinstance(n, bool) for n in NEUTRAL[name]
            ):
                raise invalid(
                    f"{name} is not offered by this endpoint; leave it out", param=name, code="unsupported_parameter"
                )
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is only allowed with stream=true", param="stream_options")

    def sampling(self, max_tokens: int) -> Sampling:
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature if top_p > 0 else 0.0,  # only the likeliest token has any probability mass
            top_p=top_p or 1.0,
            seed=self.seed,
            stop=stop,
            num_logprobs=self.num_logprobs,
            stream=bool(self.stream),
        )


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Prose


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Prose | list[TextPart]
    name: str | None = Field(None, description="Accepted and not used")

    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content)


class ChatRequest(Options):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def answer_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompt(self) -> tuple[Message, ...]:
        return tuple(message.message() for message in self.messages)

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs is only allowed with logprobs=true", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise invalid("max_tokens and max_completion_tokens differ; give one", param="max_completion_tokens")


class CompletionRequest(Options):
    """POST /v1/completions"""

    prompt: Prose | list[int] = Field(
        description="Text, rendered like the prompts of the model's records; or token ids, used unchanged"
    )
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs
