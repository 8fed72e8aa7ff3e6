"""The versions that a replica answers for: read from the registry, loaded into the engine and checked for parity, or
refused with the reason.

Versions are named by references (at the start, or later by Ray Serve's user_config), or come on demand: a request for
NAME@number of a served name, or with `discover` for any reference of the registry, loads that version, and the least
recently used of those is evicted when there are too many. Each passes a parity check before its first answer
(verify/engine.py). A version never changes, so one that was refused remains refused until other versions are named.

`follow` reads where aliases point. A reference that points elsewhere keeps its version until the new one has been
loaded and checked, and for good when that is refused. A version that is no longer served stays in the engine for
RETIRE_SECONDS, for requests that have found it here or at a peer and don't decode yet; but loading on demand leaves at
most `max_on_demand` of those.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raytune_llm.errors import InputError
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.catalog import Catalog, Entry, catalog_of, names_another_version, plain, resolve_servable
from raytune_llm.serving.deploy.progress import report
from raytune_llm.serving.engine.base import Engine, ServedModel
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.verify.engine import check_engine
from raytune_llm.serving.verify.parity import ParityError, probes
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import CHAMPION, Registry

logger = logging.getLogger(__name__)

Pointers = dict[str, Mapping[str, int]]
"""Of each name where its aliases point, as Registry.pointers returns it."""
RETIRE_SECONDS = 10.0
NAMES_SECONDS = 2.0


@dataclass(frozen=True)
class Refusal:
    """Why a version isn't served."""

    names: tuple[str, ...]
    reason: str


class ModelManager:
    """Belongs to an event loop; reading, loading and checking run in threads, one version at a time."""

    def __init__(
        self,
        engine: Engine,
        catalog: Catalog,
        registry: Registry,
        cache_dir: Path,
        *,
        max_on_demand: int,
        discover: bool = False,
        names_seconds: float = NAMES_SECONDS,
    ) -> None:
        """Loads only the base of `catalog`; `serve_only` loads versions. names_seconds: how long a listing of the
        registry's names is used."""
        self._engine, self._registry, self._cache_dir = engine, registry, cache_dir
        self._max_on_demand, self._discover, self._names_seconds = max_on_demand, discover, names_seconds
        self.catalog = catalog.without([entry.id for entry in catalog.entries[1:]])
        self._unresolved: dict[str, Refusal] = {}
        """Named references that name no version, or none for this endpoint."""
        self._failed: dict[str, Refusal] = {}
        """Versions that couldn't be loaded or failed the check, by id."""
        self._models: dict[str, ServedModel] = {}
        self._named: list[str] = []
        self._on_demand: dict[str, None] = {}
        """References, the least recently used first."""
        self._chosen: dict[str, Version] = {}
        """The version of each reference of the two."""
        self._pointers: Pointers = {}
        self._names: tuple[float, Sequence[str]] = (-math.inf, ())
        self._loading: dict[str, asyncio.Task[None]] = {}
        """Versions on demand, by the requested name."""
        self._retiring: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        base = catalog.entries[0]
        self._models[base.id] = self._add(base)

    async def find(self, name: str) -> ServedModel:
        """The model of that name, loaded on demand if allowed. Raises ApiError 404 with the reason for none."""
        name = name if self.catalog.find(name) is not None else plain(name)
        entry = self.catalog.find(name)
        if entry is None and await self._may_load(name):
            await self._load_once(name)
            entry = self.catalog.find(name)
        if entry is None:
            raise ApiError(404, self._why_not(name), code="model_not_found", param="model")
        for reference in [one for one in self._on_demand if self._chosen[one].reference == entry.id]:
            self._on_demand[reference] = self._on_demand.pop(reference)
        return self._models[entry.id]

    @property
    def refused(self) -> dict[str, Refusal]:
        """By id, or by reference where it names no version."""
        return self._unresolved | self._failed

    async def serve_only(self, references: Sequence[str]) -> None:
        """Serve exactly these references from now on; those that can't be served are refused one by one."""
        async with self._lock:
            self._named = list(dict.fromkeys(references))
            self._on_demand, self._failed = {}, {}
            pointers = await self._read_pointers()
            await self._serve(self._named, pointers)

    async def follow(self) -> None:
        """Serve what the references name by now; nothing where no alias has moved. Raises what reading the registry
        raises, with nothing changed."""
        async with self._lock:
            pointers = await self._read_pointers()
            if pointers != self._pointers:
                await self._serve([*self._named, *self._on_demand], pointers)

    async def _read_pointers(self) -> Pointers:
        """Of all names that references have, as far as they are names."""
        names = {reference.partition("@")[0] for reference in (*self._named, *self._on_demand)}

        def read() -> Pointers:
            found: Pointers = {}
            for name in sorted(names):
                with contextlib.suppress(InputError):
                    found[name] = self._registry.pointers(name)
            return found

        return await asyncio.to_thread(read)

    async def _serve(self, changed: Sequence[str], pointers: Pointers) -> None:
        """Load what the changed references name, then serve that."""
        found, reasons = await self._load_all(changed)
        self._unresolved = {
            reference: Refusal((reference,), reason)
            for reference, reason in reasons.items()
            if reference in self._named and reference not in self._chosen
        }
        chosen = {}
        for reference in (*self._named, *self._on_demand):
            version, before = found.get(reference), self._chosen.get(reference)
            if version is not None and version.reference in self._models:
                chosen[reference] = version
            elif before is not None and before.reference in self._models:
                chosen[reference] = _kept(reference, before, pointers.get(before.name, {}))
        self._pointers = pointers
        self._switch(chosen)

    async def _load_all(self, references: Sequence[str]) -> tuple[dict[str, Version], dict[str, str]]:
        """Load the versions of references as far as they pass; as `resolve_servable` returns."""
        found, reasons = await asyncio.to_thread(resolve_servable, self._registry, self.catalog, references)
        entries = self._catalog_of(found).entries[1:]
        new = [entry for entry in entries if entry.id not in self._models and entry.id not in self._failed]
        for number, entry in enumerate(new, 1):
            place = f" ({number} of {len(new)})" if len(new) > 1 else ""
            report(f"checking {entry.id} against PEFT{place} …")
            await self._load(entry)
        return found, reasons

    def _catalog_of(self, chosen: Mapping[str, Version]) -> Catalog:
        named = [version for reference, version in chosen.items() if reference in self._named]
        on_demand = {reference: version for reference, version in chosen.items() if reference not in self._named}
        return catalog_of(self.catalog, named, on_demand)

    def _switch(self, chosen: dict[str, Version]) -> None:
        """Answer by these versions from now on, less the surplus, in one step of the event loop; the others retire."""
        surplus = self._surplus(chosen)
        chosen = {reference: version for reference, version in chosen.items() if reference not in surplus}
        self._chosen = chosen
        self.catalog = self._catalog_of(chosen)
        self._on_demand = {reference: None for reference in self._on_demand if reference in chosen}
        served = {entry.id for entry in self.catalog.entries}
        for id in self._models:
            if id in self._retiring and id in served:
                self._retiring.pop(id).cancel()
            elif id not in self._retiring and id not in served:
                self._retiring[id] = asyncio.create_task(self._retire(id))

    async def _retire(self, id: str) -> None:
        await asyncio.sleep(RETIRE_SECONDS)
        async with self._lock:
            del self._retiring[id]
            await self._evict(id)

    async def _evict(self, id: str) -> None:
        del self._models[id]
        await asyncio.to_thread(self._engine.remove, id)

    async def _may_load(self, name: str) -> bool:
        if not self._max_on_demand or name in self.refused:
            return False
        return names_another_version(self.catalog, name) or (self._discover and await self._is_published(name))

    async def _is_published(self, reference: str) -> bool:
        """Whether the registry has the name of a reference, as of a listing a moment ago."""
        read_at, names = self._names
        if time.monotonic() - read_at >= self._names_seconds:
            names = await asyncio.to_thread(self._registry.names)
            self._names = time.monotonic(), names
        return reference.partition("@")[0] in names

    async def _load_once(self, name: str) -> None:
        """Load a version once for all requests that wait for it, also when one of their clients disconnects."""
        task = self._loading.get(name)
        if task is None:
            task = self._loading[name] = asyncio.create_task(self._load_on_demand(name))
            task.add_done_callback(lambda _: self._loading.pop(name))
        await asyncio.shield(task)

    async def _load_on_demand(self, name: str) -> None:
        """Raises ApiError 404 for what can't be served, which isn't remembered: it may be published a moment later."""
        async with self._lock:
            if self.catalog.find(name) is not None:
                return
            found, reasons = await self._load_all([name])
            if name in reasons:
                raise ApiError(404, reasons[name], code="model_not_found", param="model")
            id = found[name].reference
            if id not in self._models:
                raise ApiError(404, self._why_not(id), code="model_not_found", param="model")
            self._on_demand[name] = None
            self._switch(self._chosen | found)
            for id in list(self._retiring)[: -self._max_on_demand]:  # those that have retired first
                self._retiring.pop(id).cancel()
                await self._evict(id)

    def _surplus(self, chosen: Mapping[str, Version]) -> list[str]:
        """References on demand, the least recently used ones, without which there are no more than may stay."""
        named = {chosen[reference].reference for reference in self._named if reference in chosen}
        on_demand = {reference: chosen[reference].reference for reference in self._on_demand if reference in chosen}
        last_used_first = dict.fromkeys(id for id in reversed(on_demand.values()) if id not in named)
        kept = named | set(list(last_used_first)[: self._max_on_demand])
        return [reference for reference, id in on_demand.items() if id not in kept]

    def _why_not(self, name: str) -> str:
        for refusal in self.refused.values():
            if name in refusal.names:
                return f"the model '{name}' is not served here: {refusal.reason}"
        # without those on demand, which other clients have asked for
        named = {self._chosen[reference].reference for reference in self._named if reference in self._chosen}
        kept = [entry for entry in self.catalog.entries if entry.version is None or entry.id in named]
        offered = ", ".join(name for entry in kept for name in entry.names)
        return f"the model '{name}' is not served here; served: {offered}"

    async def _load(self, entry: Entry) -> None:
        """Load and check a version, or note why it is refused."""
        try:
            self._models[entry.id] = await asyncio.to_thread(self._add_checked, entry)
        except (InputError, ParityError) as error:
            logger.error("not served: %s", error)
            self._failed[entry.id] = Refusal(entry.names, str(error))

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


def _kept(reference: str, version: Version, pointers: Mapping[str, int]) -> Version:
    """A version that a reference keeps, with the aliases that point to it now, and the one of the reference."""
    own = reference.partition("@")[2] or CHAMPION
    aliases = {alias for alias, number in pointers.items() if alias and number == version.number}
    return replace(version, aliases=tuple(sorted(aliases | ({own} & set(version.aliases)))))
