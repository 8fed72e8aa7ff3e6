"""How much each API key may ask of a replica: requests and tokens a minute, by token buckets.

A bucket holds at most one minute's worth. Tokens are charged when they are known: an answer that was begun is never cut
short, its key waits longer for the next one. Left out: a count shared by replicas; each allows as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from raytune_llm.serving.engine import Delta
from raytune_llm.serving.errors import ApiError


@dataclass
class _Bucket:
    per_minute: int
    level: float = field(init=False)
    at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.level = float(self.per_minute)

    def seconds_until(self, needed: float, now: float) -> float:
        """How long until so much is there; 0 when it is."""
        passed = 0.0 if self.at is None else now - self.at
        self.level = min(self.per_minute, self.level + passed * self.per_minute / 60)
        self.at = now
        return max(0.0, (needed - self.level) * 60 / self.per_minute)


class Quota:
    """Buckets by key; where no key is asked for, all clients are one."""

    def __init__(
        self,
        *,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def admit(self, key: str) -> None:
        """Count one more request. Raises ApiError 429, saying how long to wait."""
        now = self._clock()
        waits = {what: b.seconds_until(1, now) for what in self._limits if (b := self._bucket(what, key))}
        longest = max(waits, key=lambda what: waits[what], default=None)
        if longest is not None and waits[longest] > 0:
            seconds = math.ceil(waits[longest])
            raise ApiError(
                429,
                f"this key has used up its {self._limits[longest]} {longest} per minute; try again in {seconds} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(seconds)},
            )
        if bucket := self._bucket("requests", key):
            bucket.level -= 1

    async def charged(
        self, key: str, prompt_tokens: int, deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        """The deltas, their tokens and the prompt's charged to the key."""
        bucket = self._bucket("tokens", key)
        if bucket:
            bucket.level -= prompt_tokens
        async with aclosing(deltas):
            async for delta in deltas:
                if bucket:
                    bucket.level -= delta.num_tokens
                yield delta

    def _bucket(self, what: str, key: str) -> _Bucket | None:
        limit = self._limits[what]
        return None if limit is None else self._buckets.setdefault((what, key), _Bucket(limit))
