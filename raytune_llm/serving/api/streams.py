"""Streams of deltas, and as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from raytune_llm.serving.api import errors
from raytune_llm.serving.api.deadline import deadline
from raytune_llm.serving.api.responses import Shape, usage
from raytune_llm.serving.engine.base import Delta

logger = logging.getLogger(__name__)


async def within(seconds: float, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """The deltas. Raises ApiError 408 when they take longer than so many seconds from the request's arrival."""
    latest = deadline(seconds)
    async with aclosing(deltas):
        while True:
            try:
                async with asyncio.timeout_at(latest):
                    delta = await anext(deltas)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                message = (
                    f"the answer took longer than {seconds:g} seconds, waiting included; ask for fewer tokens "
                    "(max_tokens), or try again later"
                )
                raise errors.ApiError(408, message, code="request_timeout") from error
            yield delta


async def without_leading_space(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """The deltas without the white space at the beginning of the answer."""
    has_begun = False
    async with aclosing(deltas):
        async for delta in deltas:
            text = delta.text if has_begun else delta.text.lstrip()
            has_begun = has_begun or bool(text)
            yield replace(delta, text=text)


async def events(
    deltas: AsyncGenerator[Delta, None], shape: Shape, prompt_tokens: int, *, wants_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of one answer. An error after the start is sent as an event and ends the stream."""
    completion_tokens = 0
    async with aclosing(deltas):
        try:
            for event in shape.opening():
                yield _event(event)
            async for delta in deltas:
                completion_tokens += delta.num_tokens
                yield _event(shape.event(delta.text, delta.finish, delta.logprobs))
            if wants_usage:
                yield _event(shape.usage_event(usage(prompt_tokens, completion_tokens)))
            yield "data: [DONE]\n\n"
        except errors.ApiError as error:
            yield _event(error.body())
        except RuntimeError:
            logger.exception("a stream failed")
            yield _event(errors.internal().body())


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
