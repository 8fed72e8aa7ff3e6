"""How requests are answered: prompts to tokens, limits, deltas, and the answer, whole or streamed.

Chats are rendered by the served version's own chat template, text prompts like the prompts of its supervised records.
A chat answer begins with its first character that isn't white space, because templates differ in whether a space
belongs to the prompt or to the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import Metric

from raytune_llm.serving.api import errors
from raytune_llm.serving.api.encoding import PromptEncoder
from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.api.rate_limit import RateLimiter
from raytune_llm.serving.api.requests import ChatRequest, CompletionRequest, Options
from raytune_llm.serving.api.responses import ChatShape, CompletionShape, Shape, usage
from raytune_llm.serving.api.streams import events, within, without_leading_space
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.engine.base import Delta, Engine, Sampling, ServedModel


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one request."""

    max_tokens: int
    """Longest answer, tokens."""
    context_tokens: int | None
    """Longest prompt plus answer (either of them for an encoder-decoder base); None = no bound."""
    shares_context: bool
    """Whether prompt and answer share the context, as in causal bases."""
    request_timeout_seconds: float
    """From a request's arrival to its last token, waiting included."""
    max_body_bytes: int
    body_timeout_seconds: float = 30.0
    """From a request's arrival to the last byte of its body."""
    max_open_requests: int = 80
    """Requests for answers, decoded or waiting, that one replica holds at once."""


class Models(Protocol):
    """The served models; deploy/model_manager.py loads them."""

    @property
    def catalog(self) -> Catalog:
        """Their names, for /v1/models."""
        ...

    async def find(self, name: str) -> ServedModel:
        """The model of that name. Raises ApiError 404 with the reason when there is none."""
        ...


@dataclass(kw_only=True)
class Service:
    """The routes' dependencies, and how they answer."""

    engine: Engine
    models: Models
    limits: Limits
    rate_limiter: RateLimiter
    metrics: Metrics
    generate: Callable[[str, list[int], Sampling], AsyncGenerator[Delta, None]]
    """The engine's `generate`, or one that may forward a request to another replica."""
    peer_metrics: Callable[[], Awaitable[list[Metric]]]
    """The metrics of the other replicas."""
    encoder: PromptEncoder = field(default_factory=PromptEncoder)

    async def chat(self, request: ChatRequest, key: str) -> Response:
        served = await self._find(request, key)
        prompt = await self.encoder.encode(served, request.prompt, "messages")
        shape = ChatShape(served.id, wants_logprobs=request.num_logprobs is not None)
        deltas = without_leading_space(self._generate(request, served, prompt, key))
        return await self._answer(request, shape, len(prompt), deltas)

    async def complete(self, request: CompletionRequest, key: str) -> Response:
        served = await self._find(request, key)
        if isinstance(request.prompt, str):
            prompt = await self.encoder.encode(served, request.prompt, "prompt")
        else:
            prompt = _checked_ids(served, request.prompt)
        shape = CompletionShape(served.id, wants_logprobs=request.num_logprobs is not None)
        return await self._answer(request, shape, len(prompt), self._generate(request, served, prompt, key))

    async def _find(self, request: Options, key: str) -> ServedModel:
        request.check()
        await self.rate_limiter.admit(key)
        return await self.models.find(request.model)

    async def _answer(
        self, request: Options, shape: Shape, prompt_tokens: int, deltas: AsyncGenerator[Delta, None]
    ) -> Response:
        if request.stream:
            stream = events(deltas, shape, prompt_tokens, wants_usage=request.wants_usage)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        async with aclosing(deltas):
            whole = [delta async for delta in deltas]
        finish = whole[-1].finish
        assert finish is not None
        logprobs = [entry for delta in whole for entry in delta.logprobs]
        counts = usage(prompt_tokens, sum(delta.num_tokens for delta in whole))
        return JSONResponse(shape.whole("".join(delta.text for delta in whole), finish, logprobs, counts))

    def _generate(
        self, request: Options, served: ServedModel, prompt: list[int], key: str
    ) -> AsyncGenerator[Delta, None]:
        """The answer's deltas. Raises ApiError immediately when the request exceeds the limits."""
        sampling = request.sampling(self._answer_tokens(request, served, len(prompt)))
        deltas = self.generate(served.id, prompt, sampling)
        timed = within(self.limits.request_timeout_seconds, deltas)
        return self.metrics.counted(served.id, len(prompt), self.rate_limiter.charged(key, len(prompt), timed))

    def _answer_tokens(self, request: Options, served: ServedModel, prompt_tokens: int) -> int:
        """Longest answer. Raises ApiError when prompt and answer exceed the limits."""
        longest, limit = self.engine.longest_answer(served.id), self._limited_tokens(request, prompt_tokens)
        if longest is None or prompt_tokens + limit <= longest:
            return limit
        wanted = request.answer_tokens
        if prompt_tokens + (wanted or 1) > longest:
            raise errors.invalid(
                f"the prompt's {prompt_tokens} tokens and max_tokens={wanted or 1} are more than the {longest} tokens "
                "that this endpoint's memory has room for (serve.engine.cache_bytes); shorten the prompt or lower "
                "max_tokens",
                param="prompt" if isinstance(request, CompletionRequest) else "messages",
                code="context_length_exceeded",
            )
        return longest - prompt_tokens

    def _limited_tokens(self, request: Options, prompt_tokens: int) -> int:
        """Longest answer by the endpoint's and the model's own limits."""
        limit, context, wanted = self.limits.max_tokens, self.limits.context_tokens, request.answer_tokens
        if wanted is not None and wanted > limit:
            raise errors.invalid(
                f"max_tokens={wanted} is more than this endpoint's limit of {limit}", param="max_tokens"
            )
        if context is None:
            return wanted or limit
        used = prompt_tokens if self.limits.shares_context else 0
        if prompt_tokens > context or used + (wanted or 1) > context:
            raise errors.invalid(
                f"this model's context is {context} tokens; the prompt has {prompt_tokens}"
                + (f" and max_tokens is {wanted}" if wanted is not None else "")
                + "; shorten the prompt"
                + (" or lower max_tokens" if wanted is not None else ""),
                param="prompt" if isinstance(request, CompletionRequest) else "messages",
                code="context_length_exceeded",
            )
        return min(wanted or limit, context - used)


def _checked_ids(served: ServedModel, ids: list[int]) -> list[int]:
    size = len(served.tokens.tokenizer)
    wrong = [index for index in ids if not 0 <= index < size]
    if wrong or not ids:
        raise errors.invalid(
            f"prompt: token ids must be 0 to {size - 1}, at least one; found {wrong[:5] or 'none'}", param="prompt"
        )
    return ids
