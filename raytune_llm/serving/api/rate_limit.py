"""How much each API key may ask of an endpoint: requests and tokens a minute, by token buckets.

The ledger holds the buckets, one for the whole endpoint; a replica draws a tenth of a minute's worth at a time, so that
few requests wait for the ledger, and gives back what a key left unused for a second. A bucket holds at most one
minute's worth, what replicas hold of it included. Tokens are charged when they are known: an answer that was begun is
never cut short, its key waits longer for the next one.
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
"""A replica draws this part of a minute's worth at once, at least one."""


@dataclass(frozen=True)
class KeyLimits:
    """What one key may use in a minute; None for no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None

    def of(self, what: str) -> int | None:
        return self.requests_per_minute if what == REQUESTS else self.tokens_per_minute

    @property
    def limited(self) -> list[str]:
        return [what for what in (REQUESTS, TOKENS) if self.of(what) is not None]


@dataclass(frozen=True)
class Grant:
    """The ledger's answer: what a replica may spend, or how long until there is something."""

    amount: float
    wait_seconds: float


class TokenBuckets:
    """The buckets of all keys; where no key is asked for, all clients are one."""

    def __init__(self, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._levels: dict[tuple[str, str], float] = {}
        self._refilled: dict[tuple[str, str], float] = {}
        self._held: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        """What was last drawn, by bucket and replica."""

    def draw(self, replica: str, what: str, key: str, returned: float, *, wants_more: bool) -> Grant:
        """Take back what a replica has left of its last draw (below 0: what it owes), and give it more if it wants."""
        limit = self._limits.of(what)
        assert limit is not None
        bucket, now = (what, key), self._clock()
        held = self._held[bucket]
        held.pop(replica, None)
        passed = now - self._refilled.get(bucket, now)
        room = limit - sum(held.values())
        level = min(room, self._levels.get(bucket, limit) + returned + passed * limit / 60)
        self._refilled[bucket] = now
        amount = min(level, max(1.0, limit / SHARES_PER_MINUTE)) if wants_more and level >= 1 else 0.0
        if amount:
            held[replica] = amount
        self._levels[bucket] = level - amount
        return Grant(amount, max(0.0, (1 - level) * 60 / limit))

    def forget(self, replica: str) -> None:
        """A replica that is gone holds nothing; what it had drawn counts as spent."""
        for held in self._held.values():
            held.pop(replica, None)


Acquire = Callable[[str, str, float, bool], Awaitable[Grant]]
"""what, key, returned, wants_more → Grant: a ledger, wherever it is. Raises ConnectionError when it doesn't answer."""


class RateLimiter:
    """One replica's part. Belongs to one event loop."""

    def __init__(self, limits: KeyLimits, draw: Acquire) -> None:
        self._limits, self._draw = limits, draw
        self._left: dict[tuple[str, str], float] = defaultdict(float)
        self._used: set[tuple[str, str]] = set()
        """Buckets that were spent from since the last `settle`."""
        self._locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def admit(self, key: str) -> None:
        """Count one more request. Raises ApiError 429, saying how long to wait; 503 when the ledger doesn't answer."""
        try:
            waits = {what: await self._wait(what, key) for what in self._limits.limited}
        except ConnectionError as error:
            raise ApiError(
                503, "this key's limits can't be looked up at the moment; try again", code="unavailable"
            ) from error
        longest = max(waits, key=lambda what: waits[what], default=None)
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
        """Give back what keys left unused, pay what they owe; to be called about once a second."""
        used, self._used = self._used, set()
        for bucket in [bucket for bucket, left in self._left.items() if left < 0 or bucket not in used]:
            async with self._locks[bucket]:
                await self._exchange(bucket, wants_more=False)
                if self._left[bucket] == 0:
                    del self._left[bucket]

    async def _wait(self, what: str, key: str) -> float:
        """Seconds until this replica has at least 1 to spend; 0 when it has."""
        bucket = (what, key)
        if self._left[bucket] >= 1:
            return 0.0
        async with self._locks[bucket]:
            if self._left[bucket] >= 1:
                return 0.0
            return (await self._exchange(bucket, wants_more=True)).wait_seconds

    async def _exchange(self, bucket: tuple[str, str], *, wants_more: bool) -> Grant:
        returned, self._left[bucket] = self._left[bucket], 0.0
        try:
            drawn = await self._draw(*bucket, returned, wants_more)
        except ConnectionError:
            self._left[bucket] += returned
            raise
        self._left[bucket] += drawn.amount
        return drawn

    def _spend(self, what: str, key: str, amount: float) -> None:
        if self._limits.of(what) is not None:
            self._left[what, key] -= amount
            self._used.add((what, key))


def local_acquire(ledger: TokenBuckets) -> Acquire:
    """For an endpoint of one replica: the ledger in its own process."""

    async def draw(what: str, key: str, returned: float, wants_more: bool) -> Grant:
        return ledger.draw("", what, key, returned, wants_more=wants_more)

    return draw


def _refusal(wait_seconds: float, limit: str) -> ApiError:
    seconds = math.ceil(wait_seconds)
    return ApiError(
        429,
        f"this key has used up its {limit} per minute; try again in {seconds} s",
        code="rate_limit_exceeded",
        headers={"retry-after": str(seconds)},
    )
