"""The shared state of an endpoint's replicas: the token buckets of all keys, and which adapters each replica holds.

A Serve deployment of one small replica, without torch; endpoints of a single replica have none. When it is lost, Ray
Serve starts another: replicas send a heartbeat again within a second, and the buckets start full.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from raytune_llm.serving.api.rate_limit import Grant, KeyLimits, TokenBuckets

LOST_AFTER_SECONDS = 5.0
"""A replica that sent no heartbeat for this long is considered lost."""


@dataclass(frozen=True)
class Heartbeat:
    """The state of a replica."""

    replica: str
    adapters: tuple[str, ...]
    """In its memory."""
    num_open: int
    """Answers being decoded, or waiting for it."""


class Coordinator:
    """Not thread-safe; Ray Serve calls it from one event loop."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = TokenBuckets(limits, clock)
        self._clock = clock
        self._heartbeats: dict[str, tuple[float, Heartbeat]] = {}

    async def heartbeat(self, heartbeat: Heartbeat) -> list[Heartbeat]:
        """Record a replica's state; returns that of the others."""
        now = self._clock()
        self._heartbeats[heartbeat.replica] = (now, heartbeat)
        for replica in [name for name, (at, _) in self._heartbeats.items() if now - at > LOST_AFTER_SECONDS]:
            del self._heartbeats[replica]
            self._buckets.forget(replica)
        return [other for _, other in self._heartbeats.values() if other.replica != heartbeat.replica]

    async def acquire(self, replica: str, resource: str, key: str, returned: float, wants_more: bool) -> Grant:
        """TokenBuckets.acquire, for a replica."""
        return self._buckets.acquire(replica, resource, key, returned, wants_more=wants_more)
