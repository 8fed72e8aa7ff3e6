"""Limits per key, by a clock that the test moves."""

import asyncio

import pytest

from raytune_llm.serving.engine import Delta, Finish
from raytune_llm.serving.errors import ApiError
from raytune_llm.serving.quota import Quota


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


async def deltas(counts):
    for count in counts:
        yield Delta("x", count)
    yield Delta("", 0, (), Finish.stop)


def use(quota, key, prompt_tokens, counts):
    async def run():
        return [delta async for delta in quota.charged(key, prompt_tokens, deltas(counts))]

    return asyncio.run(run())


def test_requests_are_counted_by_key_and_come_back_with_time():
    clock = Clock()
    quota = Quota(requests_per_minute=3, tokens_per_minute=None, clock=clock)
    for _ in range(3):
        quota.admit("a")
    with pytest.raises(ApiError, match="3 requests per minute; try again in 20 s") as refusal:
        quota.admit("a")
    assert (refusal.value.status, refusal.value.headers) == (429, {"retry-after": "20"})
    quota.admit("b")
    clock.now += 20
    quota.admit("a")
    with pytest.raises(ApiError):
        quota.admit("a")


def test_tokens_are_charged_when_they_are_known_and_may_be_owed():
    clock = Clock()
    quota = Quota(requests_per_minute=None, tokens_per_minute=60, clock=clock)
    quota.admit("a")
    assert len(use(quota, "a", 50, [10, 20])) == 3
    with pytest.raises(ApiError, match="60 tokens per minute; try again in 21 s"):
        quota.admit("a")
    clock.now += 20.9
    with pytest.raises(ApiError):
        quota.admit("a")
    clock.now += 0.2
    quota.admit("a")


def test_a_long_idle_key_has_no_more_than_a_minutes_worth():
    clock = Clock()
    quota = Quota(requests_per_minute=2, tokens_per_minute=1000, clock=clock)
    quota.admit("a")
    clock.now += 10_000
    quota.admit("a")
    quota.admit("a")
    with pytest.raises(ApiError):
        quota.admit("a")


def test_without_limits_nothing_is_refused():
    quota = Quota(requests_per_minute=None, tokens_per_minute=None)
    for _ in range(1000):
        quota.admit("a")
    assert len(use(quota, "a", 10**9, [10**9])) == 2
