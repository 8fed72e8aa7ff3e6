"""How requests are answered: prompts to tokens, limits, deltas, and the answers, whole or streamed.

Prompts are in the form that the version was tuned with (engine/prompts.py). A chat answer begins with its first
character that isn't white space, because templates differ in whether a space belongs to the prompt or to the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import Metric

from raytune_llm.serving.api.admission import OpenRequest
from raytune_llm.serving.api.chat_requests import ChatRequest
from raytune_llm.serving.api.echo import echo_of
from raytune_llm.serving.api.encoding import PromptEncoder
from raytune_llm.serving.api.errors import ApiError, without_paths
from raytune_llm.serving.api.lengths import Limits
from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.api.rate_limit import RateLimiter
from raytune_llm.serving.api.requests import CompletionRequest, Options
from raytune_llm.serving.api.response_events import ResponseShape
from raytune_llm.serving.api.response_requests import ResponseRequest
from raytune_llm.serving.api.responses import (
    ChatChoice,
    Choice,
    CompletionChoice,
    Shape,
    chat_shape,
    completion_shape,
    usage,
)
from raytune_llm.serving.api.streams import (
    begun,
    chunks,
    collected,
    refusing,
    server_sent,
    within,
    without_leading_space,
)
from raytune_llm.serving.api.tools import tool_use
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.engine.base import Delta, Engine, Sampling, ServedModel
from raytune_llm.serving.engine.prompts import Prompt


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
    generate: Callable[[str, list[int], Sampling, str], AsyncGenerator[Delta, None]]
    """The engine's `generate`, or one that may forward a request to another replica."""
    peer_metrics: Callable[[], Awaitable[list[Metric]]]
    """The metrics of the other replicas."""
    encoder: PromptEncoder = field(default_factory=PromptEncoder)

    async def chat(self, request: ChatRequest, place: OpenRequest) -> Response:
        served = await self._find(request, place.key)
        use = tool_use(served, request)
        prompts = [await self.encoder.chat(served, request, "" if use is None else use.opening)]
        schema = None if use is None else use.schema
        streams = [*map(without_leading_space, self._generate(request, served, prompts, place, schema))]
        choices = [
            ChatChoice(i, wants_logprobs=request.num_logprobs is not None, reader=None if use is None else use.reader())
            for i in range(len(streams))
        ]
        shape = chat_shape(served.id, prompts if request.return_prompt else None)
        is_constrained = schema is not None or request.json_schema is not None
        return await self._answer(request, shape, choices, streams, prompts, is_constrained=is_constrained)

    async def complete(self, request: CompletionRequest, place: OpenRequest) -> Response:
        served = await self._find(request, place.key)
        prompts = await self.encoder.texts(served, request)
        streams = self._generate(request, served, prompts, place)
        echoes = [echo_of(served, prompt) if request.echo else None for prompt in prompts]
        choices = [
            CompletionChoice(i, wants_logprobs=request.num_logprobs is not None, echo=echoes[i // request.num_answers])
            for i in range(len(streams))
        ]
        shape = completion_shape(served.id, prompts if request.return_prompt else None)
        is_constrained = request.json_schema is not None
        return await self._answer(request, shape, choices, streams, prompts, is_constrained=is_constrained)

    async def respond(self, request: ResponseRequest, place: OpenRequest) -> Response:
        chat = request.chat()
        served = await self._find(chat, place.key)
        prompt = await self.encoder.chat(served, chat, "")
        [deltas] = map(without_leading_space, self._generate(chat, served, [prompt], place))
        shape = ResponseShape(served.id, request, len(prompt.ids))
        if request.stream:
            if chat.json_schema is not None:
                [deltas] = await begun([deltas])
            return _stream(server_sent(shape.events(deltas), failed=shape.failed))
        [whole] = await collected([deltas])
        return JSONResponse(shape.whole(whole))

    async def _find(self, request: Options, key: str) -> ServedModel:
        request.check()
        await self.rate_limiter.admit(key)
        try:
            return await self.models.find(request.model)
        except ApiError as error:
            raise without_paths(error) from error

    async def _answer(
        self,
        request: Options,
        shape: Shape,
        choices: Sequence[Choice],
        streams: Sequence[AsyncGenerator[Delta, None]],
        prompts: Sequence[Prompt],
        *,
        is_constrained: bool,
    ) -> Response:
        """`is_constrained`: by a schema, which the engine may refuse."""
        prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        if request.stream:
            if is_constrained:
                streams = await begun(streams)
            return _stream(server_sent(chunks(shape, choices, streams, prompt_tokens, wants_usage=request.wants_usage)))
        answers = await collected(streams)
        counts = usage(prompt_tokens, sum(delta.num_tokens for deltas in answers for delta in deltas))
        return JSONResponse(
            shape.whole([choice.whole(deltas) for choice, deltas in zip(choices, answers, strict=True)], counts)
        )

    def _generate(
        self,
        request: Options,
        served: ServedModel,
        prompts: Sequence[Prompt],
        place: OpenRequest,
        schema: str | None = None,
    ) -> list[AsyncGenerator[Delta, None]]:
        """The deltas of each answer, those to one prompt after each other. `schema`: of a required call.

        Raises ApiError immediately when the request exceeds the limits, or there aren't so many places.
        """
        place.take(len(prompts) * request.num_answers)
        longest, size = self.engine.longest_answer(served.id), len(served.tokens.tokenizer)
        limits = [self.limits.answer_tokens(request, len(prompt.ids), longest) for prompt in prompts]
        streams = []
        for prompt, limit in zip(prompts, limits, strict=True):
            for which in range(request.num_answers):
                sampling = request.sampling(limit, place=which, vocabulary_size=size)
                if schema is not None:
                    sampling = replace(sampling, json_schema=schema)
                # a prompt is counted once, as OpenAI counts it
                streams.append(self._deltas(served, prompt.ids, sampling, place.key, 0 if which else len(prompt.ids)))
        return streams

    def _deltas(
        self, served: ServedModel, prompt: list[int], sampling: Sampling, key: str, counted_tokens: int
    ) -> AsyncGenerator[Delta, None]:
        """One answer's, timed, charged to the key and counted. `counted_tokens`: of the prompt."""
        deltas = refusing(self.generate(served.id, prompt, sampling, key))
        timed = within(self.limits.request_timeout_seconds, deltas)
        return self.metrics.counted(served.id, counted_tokens, self.rate_limiter.charged(key, counted_tokens, timed))


def _stream(events: AsyncIterator[Any]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
