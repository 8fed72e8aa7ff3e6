"""One replica of the endpoint: an engine, the versions on offer and the HTTP app over them. Ray Serve makes and checks
it."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric

from raytune_llm.serving.api import rate_limit
from raytune_llm.serving.api.app import Limits, Service, create_app
from raytune_llm.serving.api.metrics import Metrics
from raytune_llm.serving.catalog import Catalog
from raytune_llm.serving.deploy.model_manager import ModelManager
from raytune_llm.serving.engine.base import Delta, EngineConfig, Sampling
from raytune_llm.stores.registry import Registry

if TYPE_CHECKING:
    from fastapi import FastAPI

    from raytune_llm.serving.deploy.peers import Peers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every replica of an endpoint is made from; crosses to other nodes."""

    catalog: Catalog
    registry_dir: str
    engine: EngineConfig
    limits: Limits
    max_running: int
    key_hashes: tuple[str, ...]
    quota: rate_limit.KeyLimits
    max_on_demand: int


class Replica:
    """Ray Serve calls `reconfigure` before it counts a replica as started, and on each change of user_config."""

    def __init__(self, plan: Plan, board: Any = None) -> None:
        """`board`: a Serve handle of the Board that it shares with other replicas; None for an endpoint of one."""
        self._plan, self._name = plan, uuid.uuid4().hex[:8]
        self._cache = tempfile.TemporaryDirectory(prefix="raytune_llm_")
        self._engine = plan.engine.load(plan.catalog.base, max_running=plan.max_running)
        self._model_manager = ModelManager(
            self._engine,
            plan.catalog,
            Registry(plan.registry_dir),
            Path(self._cache.name),
            max_on_demand=plan.max_on_demand,
        )
        self._metrics = Metrics(self._name)
        self._peers = None if board is None else self._made_peers(board)
        draw = (
            rate_limit.local_acquire(rate_limit.TokenBuckets(plan.quota)) if self._peers is None else self._peers.draw
        )
        self._quota = rate_limit.RateLimiter(plan.quota, draw)
        self._posting: asyncio.Task[None] | None = None
        self._service = Service(
            engine=self._engine,
            library=self._model_manager,
            limits=plan.limits,
            quota=self._quota,
            metrics=self._metrics,
            generate=self._engine.generate if self._peers is None else self._peers.generate,
            families=_nothing if self._peers is None else self._peers.families,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service, key_hashes=self._plan.key_hashes)

    async def reconfigure(self, user_config: dict[str, list[str]]) -> None:
        """Serve these versions from now on, without a restart; those that can't be served are told by `refused`."""
        await self._model_manager.serve_only(user_config["versions"])
        if self._peers is not None and self._posting is None:
            self._posting = asyncio.create_task(self._peers.keep_posting(self._quota))

    async def answer(self, model: str, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """An answer for a peer; before it an empty delta, which says that it was taken on."""
        yield Delta("", 0)
        async with aclosing(self._engine.generate(model, prompt, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    async def counted(self) -> tuple[str, list[Metric]]:
        """This replica's name and what it has counted, for a peer."""
        return self._name, self._metrics.families(self._engine)

    def refused(self) -> dict[str, str]:
        """Why which versions are not served, by id."""
        return {id: refusal.reason for id, refusal in self._model_manager.refused.items()}

    def _made_peers(self, board: Any) -> Peers:
        from raytune_llm.serving.deploy.peers import Peers

        return Peers(board, self._name, self._engine, self._metrics, max_running=self._plan.max_running)

    def check_health(self) -> None:
        self._engine.check_health()

    def close(self) -> None:
        """Stop decoding."""
        self._engine.close()
        self._cache.cleanup()


async def _nothing() -> list[Metric]:
    return []
