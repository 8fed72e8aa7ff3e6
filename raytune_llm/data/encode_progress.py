"""How far encoding has come: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 10.0


class EncodeProgress:
    """Counts encoded records; `done` ends it. The bar vanishes, lines stay."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=f"tokenising {name}", unit=" records", leave=False, dynamic_ncols=True)

    def add(self, count: int) -> None:
        """So many more are encoded."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES and self._done < self._total:
            self._last_line = now
            rate = self._done / (now - self._started)
            left = _duration((self._total - self._done) / rate) if rate else "unknown time"
            done = f"{self._done:,} of {self._total:,} records"
            print(f"tokenising {self._name}: {done}, {rate:,.0f} a second, {left} left", flush=True)

    def done(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
