"""Streams of deltas, and as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.serving.api import errors
from raytune_llm.serving.api.deadline import deadline
from raytune_llm.serving.api.responses import Choice, Json, Shape, usage
from raytune_llm.serving.engine.base import Busy, Delta

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


async def refusing(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """The deltas. Raises ApiError 400 for what the engine refuses, 503 for what it is too busy for."""
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                yield delta
        except Busy as error:
            raise errors.overloaded() from error
        except InputError as error:
            raise errors.invalid(str(error)) from error


async def begun(streams: Sequence[AsyncGenerator[Delta, None]]) -> list[AsyncGenerator[Delta, None]]:
    """The streams, once each has its first delta: what the engine refuses is then refused before an answer begins."""

    async def rest(first: Delta, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        async with aclosing(deltas):
            yield first
            async for delta in deltas:
                yield delta

    tasks = [asyncio.ensure_future(anext(deltas)) for deltas in streams]
    try:
        firsts = await asyncio.gather(*tasks)
    except BaseException:
        await _stopped(tasks)
        for deltas in streams:
            await deltas.aclose()
        raise
    return [rest(first, deltas) for first, deltas in zip(firsts, streams, strict=True)]


async def collected(streams: Sequence[AsyncGenerator[Delta, None]]) -> list[list[Delta]]:
    """All deltas of answers that are decoded at the same time. When one fails, the others are stopped."""

    async def whole(deltas: AsyncGenerator[Delta, None]) -> list[Delta]:
        async with aclosing(deltas):
            return [delta async for delta in deltas]

    if len(streams) == 1:
        return [await whole(streams[0])]
    tasks = [asyncio.create_task(whole(deltas)) for deltas in streams]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _stopped(tasks)


async def merged(streams: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of answers that are decoded at the same time, as they come, with the answer's index."""
    if len(streams) == 1:
        async with aclosing(streams[0]):
            async for delta in streams[0]:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue()

    async def pass_on(index: int, deltas: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    queue.put_nowait((index, delta))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.create_task(pass_on(index, deltas)) for index, deltas in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield index, item
    finally:
        await _stopped(tasks)


async def _stopped(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def chunks(
    shape: Shape,
    choices: Sequence[Choice],
    streams: Sequence[AsyncGenerator[Delta, None]],
    prompt_tokens: int,
    *,
    wants_usage: bool,
) -> AsyncIterator[Json]:
    """The events of a streamed response."""
    completion_tokens = 0
    for choice in choices:
        for piece in choice.opening():
            yield shape.event(piece)
    async with aclosing(merged(streams)) as deltas:
        async for index, delta in deltas:
            completion_tokens += delta.num_tokens
            for piece in choices[index].pieces(delta):
                yield shape.event(piece)
    if wants_usage:
        yield shape.usage_event(usage(prompt_tokens, completion_tokens))


async def server_sent(
    events: AsyncIterator[Json], *, failed: Callable[[errors.ApiError], Json] | None = None
) -> AsyncIterator[str]:
    """Server-sent events. An error after the start, of whatever kind, is sent as an event and ends the stream.

    `failed`: an error's event where events are sent by their type and without [DONE] at the end, as the responses API
    has them; None where they are not.
    """
    is_named, event_of = failed is not None, failed or errors.ApiError.body
    try:
        async for event in events:
            yield _sent(event, event["type"] if is_named else None)
        if not is_named:
            yield "data: [DONE]\n\n"
    except errors.ApiError as error:
        yield _sent(event_of(error), "error" if is_named else None)
    except Exception:
        logger.exception("a stream failed")
        yield _sent(event_of(errors.internal()), "error" if is_named else None)


def _sent(content: Json, name: str | None) -> str:
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(content)}\n\n"
