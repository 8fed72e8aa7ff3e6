"""How far work on many records has come: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
SHARE_BETWEEN_LINES = 0.2
"""Of the time so far, that lines are apart at least: a long run has few."""


class RecordProgress:
    """Counts records that are done; `close` ends it. The bar vanishes, lines stay."""

    def __init__(self, what: str, total: int) -> None:
        """`what` is done with the records: "tokenising data.train"."""
        self._what, self._total, self._done = what, total, 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit=" records", leave=False, dynamic_ncols=True)

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        apart = max(SECONDS_BETWEEN_LINES, SHARE_BETWEEN_LINES * (now - self._started))
        if now - self._last_line >= apart and self._done < self._total:
            self._last_line = now
            rate = self._done / (now - self._started)
            left = _duration((self._total - self._done) / rate) if rate else "unknown time"
            done = f"{self._done:,} of {self._total:,} records"
            print(f"{self._what}: {done}, {rate:,.0f} a second, {left} left", flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
