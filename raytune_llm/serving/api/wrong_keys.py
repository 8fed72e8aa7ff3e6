"""Wrong API keys by client address: bounded per minute, and reported in the log now and then, without the keys."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from raytune_llm.serving.api.errors import ApiError

logger = logging.getLogger(__name__)

ALLOWED_PER_MINUTE = 20
"""Wrong keys of one address that are answered 401; further ones are answered 429."""
WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000


class WrongKeys:
    """Belongs to one event loop. Right keys are never held back, whatever their address has sent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}
        """Its begin and the wrong keys in it, by address; the oldest first."""
        self._unreported, self._reported_at = 0, -math.inf

    def refusal(self, address: str) -> ApiError:
        """Count one more, and how to answer it: 401, or 429 with the time to wait."""
        now = self._clock()
        begun, count = self._windows.pop(address, (now, 0))
        if now - begun >= WINDOW_SECONDS:
            begun, count = now, 0
        if len(self._windows) >= MAX_ADDRESSES:
            self._windows.pop(next(iter(self._windows)))
        self._windows[address] = begun, count + 1
        self._report(address, now)
        if count < ALLOWED_PER_MINUTE:
            return ApiError(401, "no valid API key; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        seconds = math.ceil(begun + WINDOW_SECONDS - now)
        return ApiError(
            429,
            f"more than {ALLOWED_PER_MINUTE} wrong API keys a minute from this address; try again in {seconds} s",
            code="rate_limit_exceeded",
            headers={"retry-after": str(seconds), "connection": "close"},
        )

    def _report(self, address: str, now: float) -> None:
        """One log line at once, then at most one a window."""
        self._unreported += 1
        if now - self._reported_at >= WINDOW_SECONDS:
            logger.warning("wrong API keys: %d, the last from %s", self._unreported, address)
            self._unreported, self._reported_at = 0, now
