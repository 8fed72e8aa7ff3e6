"""Where a job's time goes: for its summary, and while it is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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

    def seconds(self, running: str | None = None) -> dict[str, float]:
        """Seconds of each part so far; those since the last lap belong to the part that is `running`."""
        found = dict(self._parts)
        if running is not None:
            found[running] = found.get(running, 0.0) + self._now() - self._last
        return found

    def text(self) -> str:
        """The whole time and its parts, in a line."""
        parts = ", ".join(f"{part} {seconds:.0f}" for part, seconds in self._parts.items())
        return f"{sum(self._parts.values()):.0f} s: {parts}"


@contextmanager
def progress_lines(what: str, every_seconds: float = 10.0) -> Iterator[None]:
    """Print what is happening, and every so often how long it has taken so far."""
    begun, ended = time.monotonic(), threading.Event()

    def print_lines() -> None:
        while not ended.wait(every_seconds):
            print(f"{what}: {time.monotonic() - begun:.0f} s so far", flush=True)

    print(f"{what} …", flush=True)
    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
