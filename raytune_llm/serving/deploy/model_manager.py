"""The versions that a replica answers for: read from the registry, put into the engine, proven, or refused with the
reason.

Versions are named (at the start, or later by Ray Serve's user_config), or come on demand: a request for NAME@number of
a served name has that version loaded, and the longest unused of those is put out when there are more than may stay.
Each is proven before its first answer (load_proof.py). A version never changes, so one that was refused stays so until
other versions are named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raytune_llm.errors import InputError
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.catalog import Catalog, Entry, can_be_more, read_servable, with_version
from raytune_llm.serving.engine.base import Engine, ServedModel
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.parity import ParityError, probes
from raytune_llm.stores.registry import Registry

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why a version isn't served."""

    names: tuple[str, ...]
    reason: str


class ModelManager:
    """Belongs to an event loop; what reads, loads and proves runs in threads, one version at a time."""

    def __init__(
        self, engine: Engine, catalog: Catalog, registry: Registry, cache_dir: Path, *, max_on_demand: int
    ) -> None:
        """`catalog`: of its entries the base alone is loaded; `serve_only` loads versions."""
        self._engine, self._registry, self._cache_dir = engine, registry, cache_dir
        self._max_on_demand = max_on_demand
        self.catalog = catalog.without([entry.id for entry in catalog.entries[1:]])
        self.refused: dict[str, Refusal] = {}
        """By id; by reference where it is of no version."""
        self._models: dict[str, ServedModel] = {}
        self._on_demand: dict[str, None] = {}
        """Ids, the longest unused first."""
        self._finding: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()
        base = catalog.entries[0]
        self._models[base.id] = self._add(base)

    async def find(self, name: str) -> ServedModel:
        """The model of that name, loaded now if the endpoint may. Raises ApiError 404 with the reason for none."""
        entry = self.catalog.find(name)
        if entry is None and self._max_on_demand and name not in self.refused and can_be_more(self.catalog, name):
            await self._find_more(name)
            entry = self.catalog.find(name)
        if entry is None:
            raise ApiError(404, self._why_not(name), code="model_not_found", param="model")
        if entry.id in self._on_demand:
            self._on_demand[entry.id] = self._on_demand.pop(entry.id)
        return self._models[entry.id]

    async def serve_only(self, references: Sequence[str]) -> None:
        """Answer for these versions from now on; what can't be served is refused by itself."""
        async with self._changing:
            catalog, refused = await asyncio.to_thread(read_servable, self._registry, self.catalog, references)
            self.refused = {reference: Refusal((reference,), reason) for reference, reason in refused.items()}
            for entry in catalog.entries:
                if entry.id not in self._models:
                    await self._load(entry)
            self._on_demand.clear()
            self.catalog = catalog.without(list(self.refused))
            kept = {entry.id for entry in self.catalog.entries}
            await self._put_out([id for id in self._models if id not in kept])

    async def _find_more(self, name: str) -> None:
        """Load a version; a client that leaves meanwhile doesn't stop it for those who wait with it."""
        task = self._finding.get(name)
        if task is None:
            task = self._finding[name] = asyncio.create_task(self._load_on_demand(name))
            task.add_done_callback(lambda _: self._finding.pop(name))
        await asyncio.shield(task)

    async def _load_on_demand(self, name: str) -> None:
        async with self._changing:
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
            await self._put_out(surplus)

    def _why_not(self, name: str) -> str:
        for refusal in self.refused.values():
            if name in refusal.names:
                return f"the model '{name}' is not served here: {refusal.reason}"
        offered = ", ".join(name for entry in self.catalog.entries for name in entry.names)
        return f"the model '{name}' is not served here; served: {offered}"

    async def _load(self, entry: Entry) -> bool:
        """Load and prove a version; False when it was refused."""
        try:
            self._models[entry.id] = await asyncio.to_thread(self._add_proven, entry)
        except (InputError, ParityError) as error:
            logger.error("not served: %s", error)
            self.refused[entry.id] = Refusal(entry.names, str(error))
            return False
        return True

    def _add_proven(self, entry: Entry) -> ServedModel:
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

    async def _put_out(self, ids: Sequence[str]) -> None:
        for id in ids:
            self._on_demand.pop(id, None)
            del self._models[id]
            await asyncio.to_thread(self._engine.remove, id)
