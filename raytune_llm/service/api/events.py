"""/v1/fine_tuning/jobs/ID/events: what happened to a job, in pages or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from raytune_llm.service.api.backend import Backend, BackendOf, Owner
from raytune_llm.service.api.creation import existing
from raytune_llm.service.api.job_objects import EventObject, event_object
from raytune_llm.service.api.paging import After, Limit, Page, cut, page_of
from raytune_llm.service.records import Event
from raytune_llm.serving.api.errors import ApiError

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
MAX_STREAMS = 32
"""Open streams of one key."""
MAX_WAIT_SECONDS = 1.0
"""Between two looks for new events."""
SILENT_SECONDS = 15.0
"""After which a comment is sent, so that no proxy ends a stream."""
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.get(
    "/jobs/{job_id}/events", summary="What happened to a job", response_model=Page[EventObject], responses=STREAMED
)
async def list_events(
    job_id: str,
    backend: BackendOf,
    owner: Owner,
    after: After = None,
    limit: Limit = 20,
    stream: Annotated[bool, Query(description="Server-sent events until the job ends, the oldest first.")] = False,
) -> Page[EventObject] | Response:
    """In pages the newest first. Streamed, `after` is the last event that was received, and the stream begins with
    the one that followed it."""
    events = await _events(backend, job_id, owner)
    if not stream:
        return page_of([event_object(event) for event in reversed(events)], after, limit)
    cut([event.id for event in events], after, limit, "after")
    if backend.streams[owner] >= MAX_STREAMS:
        message = f"{MAX_STREAMS} streams of this key are open; close one first"
        raise ApiError(429, message, code="too_many_streams", headers={"retry-after": "5"})
    return StreamingResponse(
        _counted(backend, owner, _lines(backend, job_id, owner, after)),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )


async def _events(backend: Backend, job_id: str, owner: str) -> Sequence[Event]:
    """All so far, the oldest first. Raises ApiError where there is no such job."""
    found = await run_in_threadpool(backend.controller.events, job_id, owner)
    if found is None:
        existing(None, job_id)
    return found or ()


async def _counted(backend: Backend, owner: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    backend.streams[owner] += 1
    try:
        async for line in lines:
            yield line
    finally:
        backend.streams[owner] -= 1


async def _lines(backend: Backend, job_id: str, owner: str, after: str | None) -> AsyncIterator[str]:
    """Those after an event, as they happen; then [DONE]. A controller stores a job's last event before its end."""
    seen, silent = after, 0.0
    wait = min(backend.service.poll_seconds, MAX_WAIT_SECONDS)
    while True:
        job = await run_in_threadpool(backend.controller.job, job_id, owner)
        events = await _events(backend, job_id, owner)
        fresh = events[_place_after(events, seen) :]
        for event in fresh:
            yield f"data: {event_object(event).model_dump_json()}\n\n"
        if job is None or job.status.state.is_final:
            break
        if backend.closing.is_set():
            return
        seen, silent = (fresh[-1].id, 0.0) if fresh else (seen, silent + wait)
        if silent >= SILENT_SECONDS:
            silent = 0.0
            yield ": nothing new\n\n"
        await asyncio.sleep(wait)
    yield "data: [DONE]\n\n"


def _place_after(events: Sequence[Event], seen: str | None) -> int:
    return next((place for place in range(len(events), 0, -1) if events[place - 1].id == seen), 0)
