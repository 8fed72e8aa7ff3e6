"""Rate limits per API key: requests and tokens a minute, by token buckets.

The buckets are held in one place for the whole endpoint. A replica acquires a tenth of a minute's worth at a time, so
that few requests wait for a remote call, and returns what a key left unused for a second. A bucket holds at most one
minute's worth, including what replicas have acquired of it. Tokens are charged when they are known: an answer that has
begun is never cut short; its key waits longer for the next one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.engine.base import Delta

REQUESTS, TOKENS = "requests", "tokens"
SHARES_PER_MINUTE = 10
"""A replica acquires this fraction of a minute's worth at once, and at least one."""


@dataclass(frozen=True)
class KeyLimits:
    """What one key may use in a minute; None for no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None

    def of(self, resource: str) -> int | None:
        return self.requests_per_minute if resource == REQUESTS else self.tokens_per_minute

    @property
    def limited(self) -> list[str]:
        return [resource for resource in (REQUESTS, TOKENS) if self.of(resource) is not None]


@dataclass(frozen=True)
class Grant:
    """What a replica may spend of a bucket, or how long until there is something to spend."""

    amount: float
    wait_seconds: float


class TokenBuckets:
    """The buckets of all keys; without keys, all clients share one."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._levels: dict[tuple[str, str], float] = {}
        self._refilled: dict[tuple[str, str], float] = {}
        self._granted: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        """The last grants, by bucket and replica."""

    def acquire(self, replica: str, resource: str, key: str, returned: float, *, wants_more: bool) -> Grant:
        """Take back the rest of a replica's last grant (below 0: its debt), and grant more if it wants more."""
        limit = self._limits.of(resource)
        assert limit is not None
        bucket, now = (resource, key), self._clock()
        granted = self._granted[bucket]
        granted.pop(replica, None)
        passed = now - self._refilled.get(bucket, now)
        room = limit - sum(granted.values())
        level = min(room, self._levels.get(bucket, limit) + returned + passed * limit / 60)
        self._refilled[bucket] = now
        amount = min(level, max(1.0, limit / SHARES_PER_MINUTE)) if wants_more and level >= 1 else 0.0
        if amount:
            granted[replica] = amount
        self._levels[bucket] = level - amount
        return Grant(amount, max(0.0, (1 - level) * 60 / limit))

    def forget(self, replica: str) -> None:
        """A lost replica returns nothing; its grants count as spent."""
        for granted in self._granted.values():
            granted.pop(replica, None)


Acquire = Callable[[str, str, float, bool], Awaitable[Grant]]
"""(resource, key, returned, wants_more) → Grant: TokenBuckets.acquire, local or remote. Raises ConnectionError when the
buckets can't be reached."""


class RateLimiter:
    """One replica's part. Belongs to one event loop."""

    def __init__(self, limits: KeyLimits, acquire: Acquire) -> None:
        self._limits, self._acquire = limits, acquire
        self._left: dict[tuple[str, str], float] = defaultdict(float)
        self._used: set[tuple[str, str]] = set()
        """Buckets that were spent from since the last `settle`."""
        self._locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def admit(self, key: str) -> None:
        """Count one more request. Raises ApiError 429 with the time to wait; 503 when the buckets can't be reached."""
        try:
            waits = {resource: await self._wait(resource, key) for resource in self._limits.limited}
        except ConnectionError as error:
            raise ApiError(
                503, "this key's limits can't be looked up at the moment; try again", code="unavailable"
            ) from error
        longest = max(waits, key=lambda resource: waits[resource], default=None)
        if longest is not None and waits[longest] > 0:
            raise _refusal(waits[longest], f"{self._limits.of(longest)} {longest}")
        if REQUESTS in waits:
            self._spend(REQUESTS, key, 1)

    async def charged(
        self, key: str, prompt_tokens: int, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        """The deltas, their tokens and the prompt's charged to the key."""
        self._spend(TOKENS, key, prompt_tokens)
        async with aclosing(deltas):
            async for delta in deltas:
                self._spend(TOKENS, key, delta.num_tokens)
                yield delta

    async def settle(self) -> None:
        """Return what keys left unused and pay their debts; to be called about once a second."""
        used, self._used = self._used, set()
        for bucket in [bucket for bucket, left in self._left.items() if left < 0 or bucket not in used]:
            async with self._locks[bucket]:
                await self._exchange(bucket, wants_more=False)
                if self._left[bucket] == 0:
                    del self._left[bucket]

    async def _wait(self, resource: str, key: str) -> float:
        """Seconds until this replica has at least 1 to spend; 0 when it has."""
        bucket = (resource, key)
        if self._left[bucket] >= 1:
            return 0.0
        async with self._locks[bucket]:
            if self._left[bucket] >= 1:
                return 0.0
            return (await self._exchange(bucket, wants_more=True)).wait_seconds

    async def _exchange(self, bucket: tuple[str, str], *, wants_more: bool) -> Grant:
        returned, self._left[bucket] = self._left[bucket], 0.0
        try:
            grant = await self._acquire(*bucket, returned, wants_more)
        except ConnectionError:
            self._left[bucket] += returned
            raise
        self._left[bucket] += grant.amount
        return grant

    def _spend(self, resource: str, key: str, amount: float) -> None:
        if self._limits.of(resource) is not None:
            self._left[resource, key] -= amount
            self._used.add((resource, key))


def local_acquire(buckets: TokenBuckets) -> Acquire:
    """For an endpoint of one replica: buckets in its own process."""

    async def acquire(resource: str, key: str, returned: float, wants_more: bool) -> Grant:
        return buckets.acquire("", resource, key, returned, wants_more=wants_more)

    return acquire


def _refusal(wait_seconds: float, limit: str) -> ApiError:
    seconds = math.ceil(wait_seconds)
    return ApiError(
        429,
        f"this key has used up its {limit} per minute; try again in {seconds} s",
        code="rate_limit_exceeded",
        headers={"retry-after": str(seconds)},
    )
