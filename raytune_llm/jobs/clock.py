"""Where a job's time goes, for its summary."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Runs from when it is made; every lap gives the seconds since the one before to a part of the job."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last = now, now()
        self._parts: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Count the time since the last lap for this part."""
        now = self._now()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def text(self) -> str:
        """The whole time and its parts, in a line."""
        parts = ", ".join(f"{part} {seconds:.0f}" for part, seconds in self._parts.items())
        return f"{sum(self._parts.values()):.0f} s: {parts}"
