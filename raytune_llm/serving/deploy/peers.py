"""The other replicas of an endpoint, as one of them sees them.

An answer through an adapter that isn't in memory here is decoded by a replica that has it, when one has a place for
it; else the adapter is read here. So each adapter stays with few replicas, one that is asked for more than a replica
can decode spreads to more, and together they hold more adapters than one could. Every replica is known to Ray Serve's
routers by its own name, as the one `multiplexed` model it has loaded: that is how a peer is reached. A peer says at
once that it has taken an answer on: replicas that are full, each with requests for the other's adapters, would wait
for each other else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from prometheus_client import Metric
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.api.rate_limit import Acquire, Grant, RateLimiter
from raytune_llm.serving.deploy.coordinator import Heartbeat
from raytune_llm.serving.engine.base import Delta, Engine, Sampling

logger = logging.getLogger(__name__)

POST_EVERY_SECONDS = 1.0
SCRAPE_SECONDS = 2.0
"""How long a scrape waits for each peer."""
TAKEN_ON_SECONDS = 2.0
"""How long a peer has to take an answer on before it is decoded here."""
BOARD_SECONDS = 5.0
"""How long the board has to answer."""
LOST = (RayError, RayServeException, TimeoutError)


class Peers:
    """Belongs to the replica's event loop."""

    def __init__(self, board: Any, me: str, engine: Engine, metrics: Metrics, *, max_running: int) -> None:
        """`board`: a Serve handle of the Board; `me`: this replica's name."""
        self._board, self._me, self._engine, self._metrics = board, me, engine, metrics
        self._max_running = max_running
        self._others: list[Heartbeat] = []
        self._sent: Counter[str] = Counter()
        """Answers handed to each peer since its last posting."""

    @property
    def draw(self) -> Acquire:
        """The board's ledger. Raises ConnectionError when the board doesn't answer."""

        async def draw(what: str, key: str, returned: float, wants_more: bool) -> Grant:
            asked = self._board.draw.remote(self._me, what, key, returned, wants_more)
            try:
                drawn: Grant = await asyncio.wait_for(asked, BOARD_SECONDS)
            except LOST as error:
                raise ConnectionError("the board doesn't answer") from error
            return drawn

        return draw

    async def keep_posting(self, quota: RateLimiter) -> None:
        """Tell the board of this replica and settle its keys' accounts, until cancelled."""
        await _known_as(self._me)
        while True:
            try:
                posting = Heartbeat(self._me, tuple(self._engine.held()), self._engine.num_running)
                self._others = await asyncio.wait_for(self._board.post.remote(posting), BOARD_SECONDS)
                self._sent.clear()
                await quota.settle()
            except (*LOST, ConnectionError):
                logger.warning("the board doesn't answer; trying again", exc_info=True)
            await asyncio.sleep(POST_EVERY_SECONDS)

    async def generate(self, model: str, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """The answer, from here or from a peer. For a peer that doesn't take it on, or is lost before its first word,
        this replica steps in."""
        holder = self._holder(model) if self._engine.is_cold(model) else None
        if holder is not None:
            has_begun = False
            try:
                async with aclosing(self._from(holder, model, prompt, sampling)) as deltas:
                    async for delta in deltas:
                        has_begun = True
                        yield delta
                return
            except LOST as error:
                if has_begun:
                    raise RuntimeError(f"the replica that decoded by {model} was lost") from error
                logger.warning("%s gives no answer by %s; answering here", holder, model)
        async with aclosing(self._engine.generate(model, prompt, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    async def families(self) -> list[Metric]:
        """What the peers have counted; one that doesn't answer in time is left out of this scrape."""
        told = await asyncio.gather(*(self._scraped(other.replica) for other in self._others))
        # where a peer has just gone Ray Serve asks another one, which may be asked twice then
        by_name = {name: families for name, families in told if name != self._me}
        return [family for families in by_name.values() for family in families]

    def _holder(self, model: str) -> str | None:
        """The least busy peer that has the adapter and a place for one more answer."""
        load = {peer.replica: peer.num_open + self._sent[peer.replica] for peer in self._others if model in peer.held}
        free = [replica for replica, num_open in load.items() if num_open < self._max_running]
        return min(free, key=lambda replica: load[replica], default=None)

    async def _from(self, peer: str, model: str, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        self._sent[peer] += 1
        self._metrics.forwarded(model)
        answer = _handle(peer).options(method_name="answer", stream=True).remote(model, prompt, sampling)
        try:
            async with asyncio.timeout(TAKEN_ON_SECONDS):
                await anext(answer)
            async for delta in answer:
                yield delta
        finally:
            answer.cancel()

    async def _scraped(self, peer: str) -> tuple[str, list[Metric]]:
        asked = _handle(peer).options(method_name="counted").remote()
        try:
            name, families = await asyncio.wait_for(asked, SCRAPE_SECONDS)
        except LOST:
            return peer, []
        return name, families


@serve.multiplexed(max_num_models_per_replica=1)
async def _known_as(name: str) -> str:
    """Have Ray Serve's routers know this replica by a name of its own."""
    return name


def _handle(peer: str) -> Any:
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name).options(multiplexed_model_id=peer)
