"""The models that the service answers by: the offered bases, and each owner's versions tuned from them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from raytune_llm.errors import InputError
from raytune_llm.service.records import owns_name
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.responses import OWNER as PROVIDER
from raytune_llm.serving.catalog import SERVABLE, plain, unix_time
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import Registry

if TYPE_CHECKING:
    from raytune_llm.models.base import Base

KNOWN_SECONDS = 2.0
"""How long a listing, and where an alias points, is used."""
MOST_KNOWN = 10_000
"""Versions whose cards are kept in memory; likewise names, and owners."""
LONGEST_QUOTED = 200
NEVER = (-math.inf, None)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model that can be asked."""

    id: str
    """An offered base's name, or NAME@3."""
    base: str
    """The offered base that answers."""
    version: Version | None
    """None for a base."""


class OwnedModels:
    """May be called from any thread; reads the registry."""

    def __init__(self, registry_dir: str, bases: Mapping[str, Base]) -> None:
        """bases: those offered, by name."""
        self._registry = Registry(registry_dir)
        self._bases = dict(bases)
        self._versions: dict[str, Version] = {}
        """By NAME@3; a version never changes, its aliases here are as of when it was read."""
        self._references: dict[str, tuple[float, Version]] = {}
        self._lists: dict[str, tuple[float, Sequence[Version]]] = {}
        self._lock = threading.Lock()

    def find(self, name: str, owner: str) -> Found:
        """The model of a name: a base's, NAME, NAME@champion or NAME@3. Raises ApiError 404, the same for what isn't
        there and for what is another owner's."""
        if name in self._bases:
            return Found(id=name, base=name, version=None)
        version = self._version(name) if owns_name(owner, name.partition("@")[0]) else None
        if version is None:
            raise self._unknown(name)
        if version.card.kind not in SERVABLE:
            raise _not_found(f"{version.reference} is of kind {version.card.kind}, which gives no answers")
        base = self.base_of(version)
        if base is None:
            raise _not_found(f"{version.reference} was tuned from a base, or a state of it, that isn't offered here")
        return Found(id=version.reference, base=base, version=version)

    def base_of(self, version: Version) -> str | None:
        """The offered base that a version was tuned from; None where there is none."""
        fitting = [name for name, base in self._bases.items() if base.facts.revision_hash == version.card.base_revision]
        dtype = version.card.base_loading["dtype"]
        return next((name for name in fitting if self._bases[name].dtype.value == dtype), next(iter(fitting), None))

    def listing(self, owner: str) -> list[dict[str, object]]:
        """All that an owner can ask, in OpenAI's shape: the bases, then the versions, the newest first, and aliases."""
        found = [_model(name, name, 0, PROVIDER, None) for name in self._bases]
        for version in self._owned(owner):
            base = self.base_of(version)
            if base is not None and version.card.kind in SERVABLE:
                names = (version.reference, *(f"{version.name}@{alias}" for alias in version.aliases))
                created = unix_time(version.card.created)
                found += [_model(name, version.reference, created, owner, base) for name in names]
        return found

    def model(self, name: str, owner: str) -> dict[str, object]:
        """One of them, by any of its names. Raises ApiError as `find`."""
        found = self.find(name, owner)
        if found.version is None:
            return _model(name, name, 0, PROVIDER, None)
        return _model(name, found.id, unix_time(found.version.card.created), owner, found.base)

    def _version(self, reference: str) -> Version | None:
        """None where there is none, or the reference can't be one."""
        reference = plain(reference)
        with self._lock:
            known, (read_at, pointed) = self._versions.get(reference), self._references.get(reference, NEVER)
        if known is not None:
            return known
        if pointed is not None and time.monotonic() - read_at < KNOWN_SECONDS:
            return pointed
        try:
            version = self._registry.resolve(reference)
        except InputError:
            return None
        with self._lock:
            _keep(self._versions, version.reference, version)
            _keep(self._references, reference, (time.monotonic(), version))
        return version

    def _owned(self, owner: str) -> Sequence[Version]:
        """An owner's versions, the newest first, as of a moment ago."""
        with self._lock:
            read_at, versions = self._lists.get(owner, (-math.inf, ()))
        if time.monotonic() - read_at < KNOWN_SECONDS:
            return versions
        names = [name for name in self._registry.names() if owns_name(owner, name)]
        versions = sorted(
            (version for name in names for version in self._versions_of(name)),
            key=lambda version: (version.card.created, version.reference),
            reverse=True,
        )
        with self._lock:
            _keep(self._lists, owner, (time.monotonic(), versions))
        return versions

    def _versions_of(self, name: str) -> Sequence[Version]:
        """All versions of a name, with the aliases that they have now; none for a folder that isn't one."""
        try:
            pointers = self._registry.pointers(name)
            numbers = self._registry.published(name)
        except InputError:
            return []
        found = [self._version(f"{name}@{number}") for number in numbers]
        return [
            replace(
                version, aliases=tuple(a for a, number in sorted(pointers.items()) if a and number == version.number)
            )
            for version in found
            if version is not None
        ]

    def _unknown(self, name: str) -> ApiError:
        quoted = name if len(name) <= LONGEST_QUOTED else f"{name[:LONGEST_QUOTED]}…"
        return _not_found(
            f"the model '{quoted}' does not exist or you do not have access to it; bases offered here: "
            f"{', '.join(self._bases)}; GET /v1/models lists them and your tuned models"
        )


def _not_found(message: str) -> ApiError:
    return ApiError(404, message, code="model_not_found", param="model")


def _model(name: str, root: str, created: int, owner: str, parent: str | None) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "root": root,
        "parent": parent,
    }


def _keep(known: dict[str, T], key: str, value: T) -> None:
    """Add an entry; the oldest one goes when there are too many."""
    known.pop(key, None)
    known[key] = value
    if len(known) > MOST_KNOWN:
        del known[next(iter(known))]
