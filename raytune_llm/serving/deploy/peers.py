"""The other replicas of an endpoint, as one of them sees them.

A request for an adapter that isn't in memory here is forwarded to a replica that has it, if one has a free place;
otherwise the adapter is loaded here. So each adapter stays on few replicas, one with more requests than a replica can
decode spreads to others, and together they hold more adapters than one could. Ray Serve's routers know every replica
by its own name, as the one `multiplexed` model that it has loaded, which is how a peer is addressed. A peer confirms
immediately that it has accepted a request: otherwise full replicas, each with requests for the other's adapters, would
wait for each other.
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
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from raytune_llm.errors import InputError
from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.api.rate_limit import Acquire, Grant, RateLimiter
from raytune_llm.serving.deploy.coordinator import Heartbeat
from raytune_llm.serving.engine.base import Delta, Engine, Sampling

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
SCRAPE_SECONDS = 2.0
"""How long a scrape waits for each peer."""
ACCEPT_SECONDS = 2.0
"""How long a peer may take to accept a request before it is decoded here."""
COORDINATOR_SECONDS = 5.0
"""How long the coordinator may take to answer."""
LOST_ERRORS = (RayError, RayServeException, TimeoutError)


class Peers:
    """Belongs to the replica's event loop."""

    def __init__(self, coordinator: Any, name: str, engine: Engine, metrics: Metrics, *, max_running: int) -> None:
        """`coordinator`: a Serve handle of the Coordinator; `name`: this replica's."""
        self._coordinator, self._name, self._engine, self._metrics = coordinator, name, engine, metrics
        self._max_running = max_running
        self._others: list[Heartbeat] = []
        self._sent: Counter[str] = Counter()
        """Requests forwarded to each peer since the last heartbeat."""

    @property
    def acquire(self) -> Acquire:
        """The coordinator's token buckets. Raises ConnectionError when it doesn't answer."""

        async def acquire(resource: str, key: str, returned: float, wants_more: bool) -> Grant:
            response = self._coordinator.acquire.remote(self._name, resource, key, returned, wants_more)
            try:
                grant: Grant = await asyncio.wait_for(response, COORDINATOR_SECONDS)
            except LOST_ERRORS as error:
                raise ConnectionError("the coordinator doesn't answer") from error
            return grant

        return acquire

    async def send_heartbeats(self, rate_limiter: RateLimiter) -> None:
        """Report this replica's state to the coordinator and settle its keys' budgets, until cancelled."""
        await _register_as(self._name)
        while True:
            try:
                adapters = tuple(self._engine.adapters_in_memory())
                heartbeat = Heartbeat(self._name, adapters, self._engine.num_running)
                response = self._coordinator.heartbeat.remote(heartbeat)
                self._others = await asyncio.wait_for(response, COORDINATOR_SECONDS)
                self._sent.clear()
                await rate_limiter.settle()
            except (*LOST_ERRORS, ConnectionError):
                logger.warning("the coordinator doesn't answer; trying again", exc_info=True)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def generate(
        self, model: str, prompt: list[int], sampling: Sampling, client: str = ""
    ) -> AsyncGenerator[Delta, None]:
        """The answer, from here or from a peer. Decoded here if the peer doesn't accept the request, or is lost before
        its first delta."""
        holder = self._holder(model) if self._engine.is_cold(model) else None
        if holder is not None:
            has_begun = False
            try:
                async with aclosing(self._forward(holder, model, prompt, sampling, client)) as deltas:
                    async for delta in deltas:
                        has_begun = True
                        yield delta
                return
            except LOST_ERRORS as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, InputError):
                    raise InputError(str(error.cause)) from error
                if has_begun:
                    raise RuntimeError(f"the replica that decoded by {model} was lost") from error
                logger.warning("replica %s gives no answer by %s; decoding it here", holder, model)
        async with aclosing(self._engine.generate(model, prompt, sampling, client)) as deltas:
            async for delta in deltas:
                yield delta

    async def peer_metrics(self) -> list[Metric]:
        """The metrics of all peers; one that doesn't answer in time is missing from this scrape."""
        scraped = await asyncio.gather(*(self._scraped(other.replica) for other in self._others))
        # Ray Serve sends the call to another replica when a peer has just gone; that one may be called twice
        by_name = {name: families for name, families in scraped if name != self._name}
        return [family for families in by_name.values() for family in families]

    def _holder(self, model: str) -> str | None:
        """The least busy peer that has the adapter and a place for one more answer."""
        load = {
            peer.replica: peer.num_open + self._sent[peer.replica] for peer in self._others if model in peer.adapters
        }
        free = [replica for replica, num_open in load.items() if num_open < self._max_running]
        return min(free, key=lambda replica: load[replica], default=None)

    async def _forward(
        self, peer: str, model: str, prompt: list[int], sampling: Sampling, client: str
    ) -> AsyncGenerator[Delta, None]:
        self._sent[peer] += 1
        self._metrics.forwarded(model)
        answer = _handle(peer).options(method_name="answer", stream=True).remote(model, prompt, sampling, client)
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                await anext(answer)
            async for delta in answer:
                yield delta
        finally:
            answer.cancel()

    async def _scraped(self, peer: str) -> tuple[str, list[Metric]]:
        response = _handle(peer).options(method_name="own_metrics").remote()
        try:
            name, families = await asyncio.wait_for(response, SCRAPE_SECONDS)
        except LOST_ERRORS:
            return peer, []
        return name, families


@serve.multiplexed(max_num_models_per_replica=1)
async def _register_as(name: str) -> str:
    """Make this replica known to Ray Serve's routers by a name of its own."""
    return name


def _handle(peer: str) -> Any:
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name).options(multiplexed_model_id=peer)
