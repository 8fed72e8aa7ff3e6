"""One replica of the endpoint: an engine, its models and the HTTP app over them. Ray Serve creates and checks it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from prometheus_client import Metric

from raytune_llm.serving.api.answering import Service
from raytune_llm.serving.api.app import create_app
from raytune_llm.serving.api.encoding import PromptEncoder
from raytune_llm.serving.api.lengths import Limits
from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.api.rate_limit import KeyLimits, RateLimiter, TokenBuckets, local_acquire
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.deploy.cache_folder import CacheFolder
from raytune_llm.serving.deploy.left_clients import LeftClientsMiddleware
from raytune_llm.serving.deploy.model_manager import NAMES_SECONDS, ModelManager
from raytune_llm.serving.deploy.peers import Peers
from raytune_llm.serving.deploy.progress import report
from raytune_llm.serving.engine.base import Delta, EngineConfig, Sampling
from raytune_llm.stores.registry import Registry

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 60.0
"""Between two attempts to follow aliases, where they fail."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The config shared by all replicas of an endpoint; sent to other nodes."""

    catalog: Catalog
    registry_dir: str
    engine: EngineConfig
    limits: Limits
    max_running: int
    key_hashes: tuple[str, ...]
    key_limits: KeyLimits
    max_on_demand: int
    follow_seconds: float = 0.0
    discover: bool = False
    cors_origins: tuple[str, ...] = ()
    is_behind_service: bool = False
    """Whether all requests come from a service, which has checked their clients' keys and that the version is there,
    and names the client (api/auth.py)."""


class Replica:
    """Ray Serve calls `reconfigure` before it counts a replica as started, and on each change of user_config."""

    def __init__(self, plan: Plan, coordinator: Any = None) -> None:
        """`coordinator`: a Serve handle of the Coordinator; None for an endpoint of one replica."""
        self._plan, self._name = plan, uuid.uuid4().hex[:8]
        self._cache = CacheFolder()
        begun = time.perf_counter()
        report(f"loading {plan.catalog.entries[0].id} …")
        self._engine = plan.engine.load(plan.catalog.base, max_running=plan.max_running)
        report(f"{plan.catalog.entries[0].id} is loaded ({time.perf_counter() - begun:.0f} s)")
        self._model_manager = ModelManager(
            self._engine,
            plan.catalog,
            Registry(plan.registry_dir),
            self._cache.path,
            max_on_demand=plan.max_on_demand,
            discover=plan.discover,
            names_seconds=0.0 if plan.is_behind_service else NAMES_SECONDS,
        )
        self._metrics = Metrics(self._name)
        self._peers: Peers | None = None
        if coordinator is not None:
            self._peers = Peers(coordinator, self._name, self._engine, self._metrics, max_running=plan.max_running)
        acquire = local_acquire(TokenBuckets(plan.key_limits)) if self._peers is None else self._peers.acquire
        self._rate_limiter = RateLimiter(plan.key_limits, acquire)
        self._heartbeats: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._service = Service(
            engine=self._engine,
            models=self._model_manager,
            limits=plan.limits,
            rate_limiter=self._rate_limiter,
            metrics=self._metrics,
            encoder=PromptEncoder(plan.limits.context_tokens),
            generate=self._engine.generate if self._peers is None else self._peers.generate,
            peer_metrics=_no_metrics if self._peers is None else self._peers.peer_metrics,
        )

    def app(self) -> FastAPI:
        """The HTTP API, for any ASGI server."""
        plan = self._plan
        return create_app(
            self._service,
            key_hashes=plan.key_hashes,
            cors_origins=plan.cors_origins,
            is_behind_service=plan.is_behind_service,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = self.app()
        app.add_middleware(LeftClientsMiddleware)
        return app

    async def reconfigure(self, user_config: dict[str, list[str]]) -> None:
        """Serve these references from now on, without a restart; `refused` lists those that can't be served."""
        await self._model_manager.serve_only(user_config["versions"])
        self._metrics.versions_refused(self.refused())
        if self._plan.follow_seconds and self._following is None:
            self._following = asyncio.create_task(self._follow())
        if self._peers is not None and self._heartbeats is None:
            self._heartbeats = asyncio.create_task(self._peers.send_heartbeats(self._rate_limiter))

    async def _follow(self) -> None:
        """Follow the registry's aliases for good. While that fails, what is served stays, with one warning."""
        wait = self._plan.follow_seconds
        while True:
            await asyncio.sleep(wait)
            try:
                await self._model_manager.follow()
            except Exception as error:  # whatever a store raises: what is served must not depend on it
                if wait == self._plan.follow_seconds:
                    logger.warning("aliases can't be followed, what is served stays: %s", error)
                wait = min(2 * wait, max(LONGEST_WAIT_SECONDS, self._plan.follow_seconds))
            else:
                if wait != self._plan.follow_seconds:
                    logger.warning("aliases are followed again")
                wait = self._plan.follow_seconds
            self._metrics.versions_refused(self.refused())

    async def answer(
        self, model: str, prompt: list[int], sampling: Sampling, client: str = ""
    ) -> AsyncGenerator[Delta, None]:
        """An answer for a peer; an empty delta before it confirms that the request was accepted."""
        yield Delta("", 0)
        async with aclosing(self._engine.generate(model, prompt, sampling, client)) as deltas:
            async for delta in deltas:
                yield delta

    async def own_metrics(self) -> tuple[str, list[Metric]]:
        """This replica's name and metrics, for a peer."""
        return self._name, self._metrics.families(self._engine)

    def refused(self) -> dict[str, str]:
        """The versions that are not served: id → reason."""
        return {id: refusal.reason for id, refusal in self._model_manager.refused.items()}

    def check_health(self) -> None:
        self._engine.check_health()

    def close(self) -> None:
        """Stop decoding."""
        if self._following is not None:
            self._following.cancel()
        self._engine.close()
        self._cache.remove()

    def __del__(self) -> None:
        """Called by Ray Serve when it stops a replica."""
        if hasattr(self, "_cache"):
            self._cache.remove()


async def _no_metrics() -> list[Metric]:
    return []
