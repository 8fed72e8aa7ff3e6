"""The versions that a replica answers for: read from the registry, loaded into the engine and checked for parity, or
refused with the reason.

Versions are named (at the start, or later by Ray Serve's user_config), or come on demand: a request for NAME@number of
a served name loads that version, and the least recently used of those is evicted when there are too many. Each passes a
parity check before its first answer (verify/engine.py). A version never changes, so one that was refused remains
refused until other versions are named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raytune_llm.errors import InputError
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.catalog import Catalog, Entry, names_another_version, read_servable, with_version
from raytune_llm.serving.deploy.progress import report
from raytune_llm.serving.engine.base import Engine, ServedModel
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.parity import ParityError, probes
from raytune_llm.stores.registry import Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why a version isn't served."""

    names: tuple[str, ...]
    reason: str


class ModelManager:
    """Belongs to an event loop; reading, loading and checking run in threads, one version at a time."""

    def __init__(
        self, engine: Engine, catalog: Catalog, registry: Registry, cache_dir: Path, *, max_on_demand: int
    ) -> None:
        """Loads only the base of `catalog`; `serve_only` loads versions."""
        self._engine, self._registry, self._cache_dir = engine, registry, cache_dir
        self._max_on_demand = max_on_demand
        self.catalog = catalog.without([entry.id for entry in catalog.entries[1:]])
        self.refused: dict[str, Refusal] = {}
        """By id, or by reference where it names no version."""
        self._models: dict[str, ServedModel] = {}
        self._on_demand: dict[str, None] = {}
        """Ids, the least recently used first."""
        self._loading: dict[str, asyncio.Task[None]] = {}
        """Versions on demand, by the requested name."""
        self._lock = asyncio.Lock()
        base = catalog.entries[0]
        self._models[base.id] = self._add(base)

    async def find(self, name: str) -> ServedModel:
        """The model of that name, loaded on demand if allowed. Raises ApiError 404 with the reason for none."""
        entry = self.catalog.find(name)
        if entry is None and self._may_load(name):
            await self._load_once(name)
            entry = self.catalog.find(name)
        if entry is None:
            raise ApiError(404, self._why_not(name), code="model_not_found", param="model")
        if entry.id in self._on_demand:
            self._on_demand[entry.id] = self._on_demand.pop(entry.id)
        return self._models[entry.id]

    async def serve_only(self, references: Sequence[str]) -> None:
        """Serve exactly these versions from now on; those that can't be served are refused one by one."""
        async with self._lock:
            catalog, refused = await asyncio.to_thread(read_servable, self._registry, self.catalog, references)
            self.refused = {reference: Refusal((reference,), reason) for reference, reason in refused.items()}
            new = [entry for entry in catalog.entries if entry.id not in self._models]
            for number, entry in enumerate(new, 1):
                report(f"checking {entry.id} against PEFT ({number} of {len(new)}) …")
                await self._load(entry)
            self._on_demand.clear()
            self.catalog = catalog.without(list(self.refused))
            kept = {entry.id for entry in self.catalog.entries}
            await self._evict([id for id in self._models if id not in kept])

    def _may_load(self, name: str) -> bool:
        return bool(self._max_on_demand) and name not in self.refused and names_another_version(self.catalog, name)

    async def _load_once(self, name: str) -> None:
        """Load a version once for all requests that wait for it, also when one of their clients disconnects."""
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load_on_demand(name))
            task.add_done_callback(lambda _: self._loading.pop(name))
        await asyncio.shield(task)

    async def _load_on_demand(self, name: str) -> None:
        async with self._lock:
            try:
                catalog = await asyncio.to_thread(with_version, self.catalog, self._registry, name)
            except InputError as error:  # not remembered: the version may be published a moment later
                raise ApiError(404, str(error), code="model_not_found", param="model") from error
            entry = catalog.entries[-1]
            if entry.id in self._models or not await self._load(entry):
                return
            self._on_demand[entry.id] = None
            surplus = list(self._on_demand)[: -self._max_on_demand]
            self.catalog = catalog.without(surplus)
            await self._evict(surplus)

    def _why_not(self, name: str) -> str:
        for refusal in self.refused.values():
            if name in refusal.names:
                return f"the model '{name}' is not served here: {refusal.reason}"
        offered = ", ".join(name for entry in self.catalog.entries for name in entry.names)
        return f"the model '{name}' is not served here; served: {offered}"

    async def _load(self, entry: Entry) -> bool:
        """Load and check a version; False when it was refused."""
        try:
            self._models[entry.id] = await asyncio.to_thread(self._add_checked, entry)
        except (InputError, ParityError) as error:
            logger.error("not served: %s", error)
            self.refused[entry.id] = Refusal(entry.names, str(error))
            return False
        return True

    def _add_checked(self, entry: Entry) -> ServedModel:
        model = self._add(entry)
        assert entry.version is not None
        try:
            check_engine(self._engine, model, probes(entry.version))
        except BaseException:
            self._engine.remove(model.id)
            raise
        return model

    def _add(self, entry: Entry) -> ServedModel:
        model = read_model(entry, self.catalog.base, self._registry, self._cache_dir)
        self._engine.add(model)
        return model

    async def _evict(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._on_demand.pop(id, None)
            del self._models[id]
            await asyncio.to_thread(self._engine.remove, id)
