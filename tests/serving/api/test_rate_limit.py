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
    """The only replica of an endpoint."""
    limits = KeyLimits(requests_per_minute, tokens_per_minute)
    return RateLimiter(limits, local_acquire(TokenBuckets(limits, clock)))


def several(count, limits, clock):
    """Replicas that share buckets, and their calls to them."""
    buckets, calls = TokenBuckets(limits, clock), []

    def replica(name):
        async def acquire(resource, key, returned, wants_more):
            calls.append((name, resource))
            return buckets.acquire(name, resource, key, returned, wants_more=wants_more)

        return RateLimiter(limits, acquire)

    return [replica(f"replica{i}") for i in range(count)], calls


def admit(limiter, key):
    asyncio.run(limiter.admit(key))


def admitted(limiters, count):
    """How many of so many requests, in turns, are admitted."""
    found = 0
    for i in range(count):
        try:
            admit(limiters[i % len(limiters)], "a")
        except ApiError:
            continue
        found += 1
    return found


def use(limiter, key, prompt_tokens, counts):
    async def run():
        return [delta async for delta in limiter.charged(key, prompt_tokens, deltas(counts))]

    return asyncio.run(run())


def test_requests_are_counted_by_key_and_come_back_with_time():
    clock = Clock()
    limiter = local(3, None, clock)
    for _ in range(3):
        admit(limiter, "a")
    with pytest.raises(ApiError, match="3 requests per minute; try again in 20 s") as refusal:
        admit(limiter, "a")
    assert (refusal.value.status, refusal.value.headers) == (429, {"retry-after": "20"})
    admit(limiter, "b")
    clock.now += 20
    admit(limiter, "a")
    with pytest.raises(ApiError):
        admit(limiter, "a")


def test_tokens_are_charged_when_they_are_known_and_may_be_owed():
    clock = Clock()
    limiter = local(None, 60, clock)
    admit(limiter, "a")
    assert len(use(limiter, "a", 50, [10, 20])) == 3
    with pytest.raises(ApiError, match="60 tokens per minute; try again in 21 s"):
        admit(limiter, "a")
    clock.now += 20.9
    with pytest.raises(ApiError):
        admit(limiter, "a")
    clock.now += 0.2
    admit(limiter, "a")


def test_a_long_idle_key_has_no_more_than_a_minutes_worth():
    clock = Clock()
    limiter = local(2, 1000, clock)
    admit(limiter, "a")
    clock.now += 10_000
    admit(limiter, "a")
    admit(limiter, "a")
    with pytest.raises(ApiError):
        admit(limiter, "a")


def test_without_limits_nothing_is_refused():
    limiter = local(None, None)
    for _ in range(1000):
        admit(limiter, "a")
    assert len(use(limiter, "a", 10**9, [10**9])) == 2


def test_replicas_together_admit_no_more_than_one_would_and_seldom_call_the_buckets():
    clock = Clock()
    limiters, calls = several(3, KeyLimits(60, None), clock)
    assert admitted(limiters, 300) == 60
    clock.now += 30
    calls.clear()
    assert admitted(limiters, 30) == 26  # two replicas hold two more each
    assert len(calls) <= 5 + 4
    for limiter in limiters * 2:
        asyncio.run(limiter.settle())
    assert admitted(limiters, 30) == 4
    clock.now += 10_000
    assert admitted(limiters, 300) == 60


def test_unused_grants_of_a_replica_are_there_for_the_others():
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
    coordinator = Coordinator(limits, clock)
    asyncio.run(coordinator.heartbeat(Heartbeat("one", (), 0)))
    assert asyncio.run(coordinator.acquire("one", "requests", "a", 0.0, True)).amount == 6
    asyncio.run(coordinator.heartbeat(Heartbeat("two", ("wit@1",), 1)))
    assert asyncio.run(coordinator.heartbeat(Heartbeat("one", (), 0))) == [Heartbeat("two", ("wit@1",), 1)]
    clock.now += 100
    assert asyncio.run(coordinator.heartbeat(Heartbeat("two", (), 0))) == []
    granted = [asyncio.run(coordinator.acquire("two", "requests", "a", 0.0, True)).amount for _ in range(10)]
    assert sum(granted) == 60


def test_the_coordinator_needs_no_torch():
    check = "import sys, raytune_llm.serving.deploy.coordinator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_many_at_once_make_one_call_for_all():
    clock = Clock()
    (one,), calls = several(1, KeyLimits(60, None), clock)

    async def run():
        await asyncio.gather(*(one.admit("a") for _ in range(6)))

    asyncio.run(run())
    assert calls == [("replica0", "requests")]
