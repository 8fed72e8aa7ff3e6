"""What the replicas of an endpoint share: the ledger of all keys' budgets, and who holds which adapters.

A Serve deployment of one small replica, without torch; endpoints of a single replica do without. When it is lost, Ray
Serve starts another: replicas post again within a second, budgets begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from raytune_llm.serving.api.rate_limit import Grant, KeyLimits, TokenBuckets

GONE_AFTER_SECONDS = 5.0
"""A replica that posted nothing for so long is taken for gone."""


@dataclass(frozen=True)
class Heartbeat:
    """A replica, as it was a moment ago."""

    replica: str
    held: tuple[str, ...]
    """Adapters in its memory."""
    num_open: int
    """Answers being decoded, or waiting for it."""


class Coordinator:
    """Not thread-safe; Ray Serve calls it from one event loop."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = TokenBuckets(limits, clock)
        self._clock = clock
        self._postings: dict[str, tuple[float, Heartbeat]] = {}

    async def post(self, posting: Heartbeat) -> list[Heartbeat]:
        """Tell of a replica; returns the others."""
        now = self._clock()
        self._postings[posting.replica] = (now, posting)
        for replica in [name for name, (at, _) in self._postings.items() if now - at > GONE_AFTER_SECONDS]:
            del self._postings[replica]
            self._ledger.forget(replica)
        return [other for _, other in self._postings.values() if other.replica != posting.replica]

    async def draw(self, replica: str, what: str, key: str, returned: float, wants_more: bool) -> Grant:
        """A replica's draw from the ledger."""
        return self._ledger.draw(replica, what, key, returned, wants_more=wants_more)
