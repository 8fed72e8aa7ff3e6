"""A replica whose peers or coordinator don't answer, without Ray Serve: it decodes itself, or refuses at once."""

import asyncio
from types import SimpleNamespace

import pytest

from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.rate_limit import KeyLimits, RateLimiter
from raytune_llm.serving.deploy import peers
from raytune_llm.serving.deploy.coordinator import Heartbeat
from raytune_llm.serving.deploy.peers import Peers
from raytune_llm.serving.engine.base import Delta, Finish

ANSWER = [Delta("here", 1), Delta("", 0, (), Finish.stop)]


class Never:
    """An answer of a peer that is full, or of a coordinator that hangs."""

    cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.Event().wait()

    def __await__(self):
        return asyncio.Event().wait().__await__()

    def cancel(self):
        self.cancelled = True


class Engine:
    num_running = 0

    def is_cold(self, model):
        return True

    def adapters_in_memory(self):
        return []

    async def generate(self, model, prompt, sampling, client=""):
        for delta in ANSWER:
            yield delta


def coordinator_that(answers):
    """A coordinator's handle."""
    remote = SimpleNamespace(remote=lambda *_: answers())
    return SimpleNamespace(heartbeat=remote, acquire=remote)


def peer_that(answer):
    handle = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: answer))
    return lambda peer: handle


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(peers, "ACCEPT_SECONDS", 0.05)
    monkeypatch.setattr(peers, "COORDINATOR_SECONDS", 0.05)

    async def registered(name):
        return name

    monkeypatch.setattr(peers, "_register_as", registered)


async def generated(coordinator):
    """The answer, once the coordinator has reported the other replicas."""
    me = Peers(coordinator, "me", Engine(), SimpleNamespace(forwarded=lambda _: None), max_running=4)
    heartbeats = asyncio.create_task(me.send_heartbeats(RateLimiter(KeyLimits(None, None), me.acquire)))
    await asyncio.sleep(0.01)
    found = [delta async for delta in me.generate("a@1", [1], None)]
    heartbeats.cancel()
    return found


async def one_other():
    return [Heartbeat("other", ("a@1",), 0)]


def test_a_peer_that_does_not_accept_a_request_is_not_waited_for(monkeypatch):
    never = Never()
    monkeypatch.setattr(peers, "_handle", peer_that(never))
    assert asyncio.run(generated(coordinator_that(one_other))) == ANSWER
    assert never.cancelled


def test_a_peer_that_accepts_may_take_long(monkeypatch):
    class Slow(Never):
        def __init__(self):
            self.deltas = iter([(0, Delta("", 0)), (0.1, Delta("there", 1)), (0, Delta("", 0, (), Finish.stop))])

        async def __anext__(self):
            seconds, delta = next(self.deltas, (0, None))
            await asyncio.sleep(seconds)
            if delta is None:
                raise StopAsyncIteration
            return delta

    monkeypatch.setattr(peers, "_handle", peer_that(Slow()))
    assert asyncio.run(generated(coordinator_that(one_other))) == [Delta("there", 1), Delta("", 0, (), Finish.stop)]


def test_a_coordinator_that_does_not_answer_is_error_503():
    me = Peers(coordinator_that(Never), "me", Engine(), None, max_running=4)
    limiter = RateLimiter(KeyLimits(10, None), me.acquire)
    with pytest.raises(ApiError, match="limits can't be looked up") as raised:
        asyncio.run(limiter.admit("key"))
    assert raised.value.status == 503
