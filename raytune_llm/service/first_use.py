"""An ASGI app that is made when the first request for it comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from raytune_llm.errors import InputError
from raytune_llm.serving.api.errors import ApiError, overloaded

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""How long an app that couldn't be made isn't tried again."""


class FirstUse:
    """Makes an app once for all requests that wait for it; one that couldn't be made is tried again later. Belongs to
    one event loop."""

    def __init__(
        self, name: str, make: Callable[[], Awaitable[ASGIApp]], *, wait_seconds: float, most_waiting: int
    ) -> None:
        """name: for messages; wait_seconds: how long a request waits before it is answered 503; most_waiting: further
        requests are answered 503 at once."""
        self._name, self._make = name, make
        self._wait_seconds, self._most_waiting = wait_seconds, most_waiting
        self._num_waiting = 0
        self._task: asyncio.Task[ASGIApp] | None = None
        self._failed_at = -RETRY_SECONDS
        self.note = "is being loaded"
        """What a request that has waited for long is answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            app = await self._ready()
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await app(scope, receive, send)

    def forget(self) -> None:
        """Make the app anew at the next request."""
        if self._task is not None and self._task.done():
            self._task = None

    async def _ready(self) -> ASGIApp:
        """Raises ApiError 503."""
        task = self._started()
        if task.done():
            return task.result()
        if self._num_waiting >= self._most_waiting:
            raise overloaded()
        self._num_waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await asyncio.shield(task)
        except TimeoutError:
            raise _unavailable(f"{self._name} {self.note}; try again in a moment", 5) from None
        finally:
            self._num_waiting -= 1

    def _started(self) -> asyncio.Task[ASGIApp]:
        has_failed = self._task is not None and self._task.done() and self._task.exception() is not None
        if self._task is None or (has_failed and time.monotonic() - self._failed_at >= RETRY_SECONDS):
            self._task = asyncio.create_task(self._made())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # also where nobody waits
        return self._task

    async def _made(self) -> ASGIApp:
        """Raises ApiError 503 for whatever prevents it, which is logged."""
        begun = time.monotonic()
        print(f"{self._name}: loading it to answer for it …", flush=True)
        try:
            app = await self._make()
        except Exception as error:
            self._failed_at = time.monotonic()
            if isinstance(error, InputError):
                logger.error("%s can't answer: %s", self._name, error)
            else:
                logger.exception("%s can't answer", self._name)
            raise _unavailable(
                f"{self._name} can't answer at the moment; the service's log says why; try again later", 30
            ) from error
        print(f"{self._name} answers ({time.monotonic() - begun:.0f} s)", flush=True)
        return app


def _unavailable(message: str, retry_seconds: int) -> ApiError:
    return ApiError(503, message, code="unavailable", headers={"retry-after": str(retry_seconds)})
