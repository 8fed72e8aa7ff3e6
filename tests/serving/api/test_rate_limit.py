"""Limits per key, by a clock that the test moves."""

import asyncio
import subprocess
import sys
import time

import pytest

from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.rate_limit import KeyLimits, RateLimiter, TokenBuckets, local_acquire
from raytune_llm.serving.deploy.coordinator import Coordinator, Heartbeat
from raytune_llm.serving.engine.base import Delta, Finish


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


async def deltas(counts):
    for count in counts:
        yield Delta("x", count)
    yield Delta("", 0, (), Finish.stop)


def local(requests_per_minute, tokens_per_minute, clock=time.monotonic):
    """A replica alone."""
    limits = KeyLimits(requests_per_minute, tokens_per_minute)
    return RateLimiter(limits, local_acquire(TokenBuckets(limits, clock)))


def several(count, limits, clock):
    """Replicas with one ledger, and the draws they make."""
    ledger, draws = TokenBuckets(limits, clock), []

    def replica(name):
        async def draw(what, key, returned, wants_more):
            draws.append((name, what))
            return ledger.draw(name, what, key, returned, wants_more=wants_more)

        return RateLimiter(limits, draw)

    return [replica(f"replica{i}") for i in range(count)], draws


def admit(quota, key):
    asyncio.run(quota.admit(key))


def admitted(quotas, count):
    """How many of so many requests, in turns, are admitted."""
    found = 0
    for i in range(count):
        try:
            admit(quotas[i % len(quotas)], "a")
        except ApiError:
            continue
        found += 1
    return found


def use(quota, key, prompt_tokens, counts):
    async def run():
        return [delta async for delta in quota.charged(key, prompt_tokens, deltas(counts))]

    return asyncio.run(run())


def test_requests_are_counted_by_key_and_come_back_with_time():
    clock = Clock()
    quota = local(3, None, clock)
    for _ in range(3):
        admit(quota, "a")
    with pytest.raises(ApiError, match="3 requests per minute; try again in 20 s") as refusal:
        admit(quota, "a")
    assert (refusal.value.status, refusal.value.headers) == (429, {"retry-after": "20"})
    admit(quota, "b")
    clock.now += 20
    admit(quota, "a")
    with pytest.raises(ApiError):
        admit(quota, "a")


def test_tokens_are_charged_when_they_are_known_and_may_be_owed():
    clock = Clock()
    quota = local(None, 60, clock)
    admit(quota, "a")
    assert len(use(quota, "a", 50, [10, 20])) == 3
    with pytest.raises(ApiError, match="60 tokens per minute; try again in 21 s"):
        admit(quota, "a")
    clock.now += 20.9
    with pytest.raises(ApiError):
        admit(quota, "a")
    clock.now += 0.2
    admit(quota, "a")


def test_a_long_idle_key_has_no_more_than_a_minutes_worth():
    clock = Clock()
    quota = local(2, 1000, clock)
    admit(quota, "a")
    clock.now += 10_000
    admit(quota, "a")
    admit(quota, "a")
    with pytest.raises(ApiError):
        admit(quota, "a")


def test_without_limits_nothing_is_refused():
    quota = local(None, None)
    for _ in range(1000):
        admit(quota, "a")
    assert len(use(quota, "a", 10**9, [10**9])) == 2


def test_replicas_together_admit_no_more_than_one_would_and_seldom_ask_the_ledger():
    clock = Clock()
    quotas, draws = several(3, KeyLimits(60, None), clock)
    assert admitted(quotas, 300) == 60
    clock.now += 30
    draws.clear()
    assert admitted(quotas, 30) == 26  # two replicas hold two more each
    assert len(draws) <= 5 + 4
    for quota in quotas * 2:
        asyncio.run(quota.settle())
    assert admitted(quotas, 30) == 4
    clock.now += 10_000
    assert admitted(quotas, 300) == 60


def test_what_a_replica_drew_and_left_unused_is_there_for_the_others():
    clock = Clock()
    (one, two), _ = several(2, KeyLimits(60, None), clock)
    admit(one, "a")
    assert admitted([two], 60) == 54
    asyncio.run(one.settle())  # used since the last time: kept
    assert admitted([two], 1) == 0
    asyncio.run(one.settle())
    assert admitted([two], 60) == 5
    clock.now += 10_000
    admit(one, "a")
    clock.now += 10_000
    assert admitted([two], 60) == 54  # full, less what the other replica may still spend


def test_tokens_used_at_one_replica_are_owed_at_all():
    clock = Clock()
    (one, two), _ = several(2, KeyLimits(None, 60), clock)
    admit(one, "a")
    use(one, "a", 50, [40])
    admit(two, "a")
    asyncio.run(one.settle())
    asyncio.run(two.settle())
    asyncio.run(two.settle())
    with pytest.raises(ApiError, match="60 tokens per minute; try again in 31 s"):
        admit(two, "a")


def test_a_replica_that_is_gone_holds_nothing_back():
    clock = Clock()
    limits = KeyLimits(60, None)
    board = Coordinator(limits, clock)
    asyncio.run(board.post(Heartbeat("one", (), 0)))
    assert asyncio.run(board.draw("one", "requests", "a", 0.0, True)).amount == 6
    asyncio.run(board.post(Heartbeat("two", ("wit@1",), 1)))
    assert asyncio.run(board.post(Heartbeat("one", (), 0))) == [Heartbeat("two", ("wit@1",), 1)]
    clock.now += 100
    assert asyncio.run(board.post(Heartbeat("two", (), 0))) == []
    drawn = [asyncio.run(board.draw("two", "requests", "a", 0.0, True)).amount for _ in range(10)]
    assert sum(drawn) == 60


def test_the_board_is_made_without_torch():
    said = "import sys, raytune_llm.serving.deploy.coordinator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said]).returncode == 0


def test_many_at_once_make_one_draw_for_all():
    clock = Clock()
    (one,), draws = several(1, KeyLimits(60, None), clock)

    async def run():
        await asyncio.gather(*(one.admit("a") for _ in range(6)))

    asyncio.run(run())
    assert draws == [("replica0", "requests")]
