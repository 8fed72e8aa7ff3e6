"""Request bodies in OpenAI's format; unknown and unsupported parameters are refused by name, never ignored.

OpenAI's parameters that this endpoint doesn't support are accepted at their neutral values (suffix="", store=false).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from raytune_llm.serving.api.errors import invalid
from raytune_llm.serving.api.formats import ResponseFormat
from raytune_llm.serving.engine.base import PromptForm, Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
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
MAX_CHOICES = 128
"""Answers to one request: prompts times n."""
GREEDY_BELOW = 1e-5
"""Lower temperatures are greedy: they would divide logits to infinity, and never sample anything else."""
LONGEST_STOP = 1000
"""Characters; so much of an answer may be kept back."""


def _without_lone_surrogates(text: str) -> str:
    """JSON can contain half a surrogate pair, which tokenizers reject."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("it contains a lone surrogate, which is no character")
    return text


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _one_or_more_prompts(value: object) -> object:
    """Raises ValueError, in one message for all the types that a prompt may have."""
    if isinstance(value, str) or (value and _is_ids(value)):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    if isinstance(value, list) and value and all(item and _is_ids(item) for item in value):
        return value
    raise ValueError("must be a text, a list of texts, a list of token ids or a list of such lists, none of them empty")


def _stops(value: object) -> object:
    items = value if isinstance(value, list) else [value]
    if value is None or (len(items) <= MAX_STOPS and all(isinstance(item, str) and item for item in items)):
        return value
    raise ValueError(f"must be a text or a list of up to {MAX_STOPS} texts, none of them empty")


MAX_STOPS = 16
PromptFormName = Literal["raw", "pair", "chat"]
Prose = Annotated[str, AfterValidator(_without_lone_surrogates)]
NonEmpty = Annotated[Prose, Field(min_length=1)]
Prompts = Annotated[Prose | list[Prose] | list[int] | list[list[int]], BeforeValidator(_one_or_more_prompts)]
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
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Answers to each prompt; null is 1")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; null is 1")
    top_p: float | None = Field(None, ge=0, le=1, description="null is 1")
    max_tokens: int | None = Field(None, ge=1, description="null is the endpoint's limit, or the rest of the context")
    stop: Annotated[StopString | list[StopString] | None, BeforeValidator(_stops)] = None
    seed: int | None = Field(None, ge=-LARGEST_SEED, lt=LARGEST_SEED, description="The i-th of n answers has seed + i")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, description="By token id")
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, description="Accepted and not used")
    safety_identifier: str | None = Field(None, description="Accepted and not used")
    prompt_cache_key: str | None = Field(None, description="Accepted and not used")
    metadata: dict[str, str] | None = Field(None, description="Accepted and not used")
    top_k: int | None = Field(None, ge=-1, description="Extension: samples from the k likeliest tokens; -1, 0: all")
    min_p: float | None = Field(None, ge=0, le=1, description="Extension: least probability, as a share of the largest")
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, description="Extension: divides logits of tokens so far"
    )
    ignore_eos: bool | None = Field(None, description="Extension: the answer ends by max_tokens and stop alone")
    prompt_form: PromptFormName | None = Field(
        None, description="Extension: raw, pair or chat; null is the form that the version was tuned with"
    )
    return_prompt: bool | None = Field(None, description="Extension: the answer has `prompts`, as they were rendered")

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_answers(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def form(self) -> PromptForm | None:
        return None if self.prompt_form is None else PromptForm(self.prompt_form)

    @property
    def answer_tokens(self) -> int | None:
        """Longest answer that the client wants, tokens."""
        return self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens to return with each chosen one; None for no log-probabilities."""

    @property
    def json_schema(self) -> str | None:
        """JSON text of the schema that the answer must satisfy."""
        return None if self.response_format is None else self.response_format.schema_text

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

    def bias(self, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
        """logit_bias by token id. Raises ApiError for what is no id of the model's vocabulary."""
        given = self.logit_bias or {}
        for name in given:
            if not (name.isascii() and name.isdigit() and int(name) < vocabulary_size):
                raise invalid(
                    f"logit_bias: {name[:20]!r} is no token id of this model, 0 to {vocabulary_size - 1}",
                    param="logit_bias",
                )
        return tuple((int(name), value) for name, value in given.items())

    def sampling(self, max_tokens: int, *, place: int = 0, vocabulary_size: int = 0) -> Sampling:
        """How the answer is sampled. `place`: which of the n answers, from 0. Raises ApiError as `bias` does."""
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        # with top_p=0 only the likeliest token has any probability mass
        is_greedy = temperature < GREEDY_BELOW or top_p == 0
        return Sampling(
            max_tokens=max_tokens,
            temperature=0.0 if is_greedy else temperature,
            top_p=top_p or 1.0,
            seed=None if self.seed is None else self.seed + place,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            num_logprobs=self.num_logprobs,
            stream=bool(self.stream),
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=self.bias(vocabulary_size),
            ignore_eos=bool(self.ignore_eos),
            json_schema=self.json_schema,
        )


class CompletionRequest(Options):
    """POST /v1/completions"""

    prompt: Prompts = Field(description="Text or token ids, or a list of them")
    max_tokens: int | None = Field(None, ge=0, description="0 only reads the prompt, for its log-probabilities")
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = Field(None, description="The answer begins with the prompt, which is then raw by default")
    best_of: int | None = Field(None, ge=1, description="Only n")

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if _is_ids(self.prompt) else self.prompt  # type: ignore[return-value]

    @property
    def form(self) -> PromptForm | None:
        return PromptForm.raw if self.echo and self.prompt_form is None else super().form

    def check(self) -> None:
        super().check()
        if self.best_of not in (None, self.num_answers):
            raise invalid(
                f"best_of={self.best_of} is not offered by this endpoint other than as n; leave it out",
                param="best_of",
                code="unsupported_parameter",
            )
        if len(self.prompts) * self.num_answers > MAX_CHOICES:
            raise invalid(
                f"{len(self.prompts)} prompts with n={self.num_answers} are more than {MAX_CHOICES} answers; send "
                "several requests",
                param="prompt",
            )

    def sampling(self, max_tokens: int, *, place: int = 0, vocabulary_size: int = 0) -> Sampling:
        sampling = super().sampling(max_tokens, place=place, vocabulary_size=vocabulary_size)
        if not self.echo or self.num_logprobs is None:
            return sampling
        # One token is generated to score a prompt, and is the last entry even if it ends the answer:
        # lm-evaluation-harness drops the last one.
        ignore_eos = sampling.ignore_eos or max_tokens == 1
        return replace(sampling, num_prompt_logprobs=self.num_logprobs, ignore_eos=ignore_eos)
