"""Engines in the service's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from raytune_llm.service.answers.base import Answering, Cluster, check_serve
from raytune_llm.service.first_use import FirstUse
from raytune_llm.serving.catalog import base_alone

if TYPE_CHECKING:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.deploy.config import Serve
    from raytune_llm.serving.deploy.replica import Replica


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """One engine a base, in this process, loaded at the first request for it."""

    def start(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base], cluster: Cluster) -> Answering:
        check_serve(serve, bases)
        return Engines(serve, registry_dir, bases)


class Engines:
    """The engines of all bases. Belongs to one event loop, up to `close`."""

    def __init__(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base]) -> None:
        self._serve, self._registry_dir, self._bases = serve, registry_dir, dict(bases)
        self._replicas: list[Replica] = []
        self._apps = {name: self._first_use(name) for name in bases}

    def app_of(self, base: str) -> ASGIApp:
        return self._apps[base]

    def close(self) -> None:
        for replica in self._replicas:
            replica.close()
        self._replicas.clear()

    def _first_use(self, name: str) -> FirstUse:
        async def make() -> ASGIApp:
            replica = await asyncio.to_thread(self._load, name)
            self._replicas.append(replica)
            await replica.reconfigure({"versions": []})
            return replica.app()

        return FirstUse(
            name,
            make,
            wait_seconds=self._serve.request_timeout_seconds,
            most_waiting=self._serve.max_concurrent_requests + self._serve.max_waiting_requests,
        )

    def _load(self, name: str) -> Replica:
        from raytune_llm.serving.deploy.application import make_plan
        from raytune_llm.serving.deploy.replica import Replica

        catalog = base_alone(self._bases[name], name)
        return Replica(make_plan(self._serve, self._registry_dir, catalog, (), is_behind_service=True))
