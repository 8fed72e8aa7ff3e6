"""When a request must have been answered: set where it arrives, read where it waits and is decoded."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

_DEADLINE: ContextVar[float | None] = ContextVar("raytune_llm_deadline", default=None)


def set_deadline(deadline: float) -> None:
    """For the present request, by its event loop's clock, in seconds."""
    _DEADLINE.set(deadline)


def deadline(seconds: float) -> float:
    """The present request's; outside of one, so many seconds from now."""
    found = _DEADLINE.get()
    return asyncio.get_running_loop().time() + seconds if found is None else found
