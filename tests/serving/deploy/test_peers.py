"""A replica whose peers or board don't answer, without Ray Serve: it steps in, or says at once what is missing."""

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
    """An answer of a peer that is full, or of a board that hangs."""

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

    def held(self):
        return []

    async def generate(self, model, prompt, sampling):
        for delta in ANSWER:
            yield delta


def one_that_posts(board_answers):
    """A board's handle."""
    remote = SimpleNamespace(remote=lambda *_: board_answers())
    return SimpleNamespace(post=remote, draw=remote)


def peer_that(answer):
    handle = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: answer))
    return lambda peer: handle


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(peers, "TAKEN_ON_SECONDS", 0.05)
    monkeypatch.setattr(peers, "BOARD_SECONDS", 0.05)

    async def known(name):
        return name

    monkeypatch.setattr(peers, "_known_as", known)


async def generated(board):
    """What is answered once the board has told of the other replicas."""
    me = Peers(board, "me", Engine(), SimpleNamespace(handed_over=lambda _: None), max_running=4)
    posting = asyncio.create_task(me.keep_posting(RateLimiter(KeyLimits(None, None), me.draw)))
    await asyncio.sleep(0.01)
    found = [delta async for delta in me.generate("a@1", [1], None)]
    posting.cancel()
    return found


async def told():
    return [Heartbeat("other", ("a@1",), 0)]


def test_a_peer_that_does_not_take_an_answer_on_is_not_waited_for(monkeypatch):
    never = Never()
    monkeypatch.setattr(peers, "_handle", peer_that(never))
    assert asyncio.run(generated(one_that_posts(told))) == ANSWER
    assert never.cancelled


def test_a_peer_that_takes_it_on_may_think_for_long(monkeypatch):
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
    assert asyncio.run(generated(one_that_posts(told))) == [Delta("there", 1), Delta("", 0, (), Finish.stop)]


def test_a_board_that_does_not_answer_is_told_as_503():
    me = Peers(one_that_posts(Never), "me", Engine(), None, max_running=4)
    quota = RateLimiter(KeyLimits(10, None), me.draw)
    with pytest.raises(ApiError, match="limits can't be looked up") as raised:
        asyncio.run(quota.admit("key"))
    assert raised.value.status == 503
