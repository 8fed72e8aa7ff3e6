"""The models that an endpoint serves and their names: one base and versions tuned from it, from their cards.

    BASE            the base: its hub id, or its folder's name
    NAME@3          a version; every answer names its model this way
    NAME            the first of the served versions of that name
    NAME@champion   and any other alias that points to a served version

A version that is served on demand has its number and the names that were requested, which mean what they mean in the
registry.

A catalog never changes; a replica that follows the registry's aliases replaces its catalog (deploy/model_manager.py).
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from raytune_llm.errors import InputError
from raytune_llm.models.base import Base
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import SELECTOR, Registry

SERVABLE = ("adapter", "model")
"""Kinds of versions that generate answers."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A base or a version that is served."""

    id: str
    names: tuple[str, ...]
    """Every name of the model, `id` first."""
    kind: str
    """base, adapter or model."""
    version: Version | None
    """None for the base."""
    created: int
    """Unix time, seconds."""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All models of one endpoint."""

    base: Base
    entries: tuple[Entry, ...]
    """The base first."""

    def find(self, name: str) -> Entry | None:
        return next((entry for entry in self.entries if name in entry.names), None)

    @property
    def versions(self) -> list[Version]:
        return [entry.version for entry in self.entries if entry.version is not None]

    def without(self, ids: Sequence[str]) -> Catalog:
        return Catalog(base=self.base, entries=tuple(entry for entry in self.entries if entry.id not in ids))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running endpoint."""

    url: str
    """Base URL for OpenAI clients, ending in /v1."""
    catalog: Catalog
    api_key: str | None
    """A key that it accepts; None when it needs none."""

    @property
    def models(self) -> list[str]:
        """Names of its models."""
        return [name for entry in self.catalog.entries for name in entry.names]

    def __repr__(self) -> str:
        return f"Endpoint({self.url}, models={self.models})"


def read_catalog(registry: Registry, references: Sequence[str]) -> Catalog:
    """The catalog of these references; the first one determines the base.

    Raises InputError when one doesn't exist, has another base, or is of a kind that generates no answers.
    """
    if not references:
        raise InputError(
            "version= names nothing to serve; give NAME, NAME@champion or NAME@3, several separated by commas"
        )
    versions = list({version.reference: version for version in map(registry.resolve, references)}.values())
    first = versions[0]
    for version in versions:
        _check_kind(version)
    base = Base.from_loading(first.card.base_loading)
    if base.facts.revision_hash != first.card.base_revision:
        raise InputError(
            f"{first.reference} was tuned from another state of {first.card.base}: "
            f"its card has {first.card.base_revision[:12]}, the base is now "
            f"{base.facts.revision_hash[:12]}; restore that base, or tune again"
        )
    catalog = base_alone(base, _base_id(base))
    for version in versions:
        catalog = _extended(catalog, version, f", from {first.reference}")
    return catalog


def base_alone(base: Base, name: str) -> Catalog:
    """The catalog of a base, by a name, without versions."""
    return Catalog(base=base, entries=(Entry(id=name, names=(name,), kind="base", version=None, created=0),))


def resolve_servable(
    registry: Registry, catalog: Catalog, references: Sequence[str]
) -> tuple[dict[str, Version], dict[str, str]]:
    """The versions that references name, of those that the catalog's endpoint can serve, and the others' reasons."""
    found: dict[str, Version] = {}
    refused: dict[str, str] = {}
    for reference in references:
        try:
            version = registry.resolve(reference)
            _extended(replace(catalog, entries=catalog.entries[:1]), version, "")
            found[reference] = version
        except InputError as error:
            refused[reference] = str(error)
    return found, refused


def catalog_of(
    catalog: Catalog, versions: Sequence[Version], on_demand: Mapping[str, Version] = MappingProxyType({})
) -> Catalog:
    """The same base with these versions, each once, which `resolve_servable` found, and with those that references
    name which were requested."""
    made = replace(catalog, entries=catalog.entries[:1])
    for version in versions:
        if made.find(version.reference) is None:
            made = _extended(made, version, "")
    for reference, version in on_demand.items():
        if made.find(version.reference) is None:
            entry = replace(_extended(made, version, "").entries[-1], names=(version.reference,))
            made = replace(made, entries=(*made.entries, entry))
        if made.find(reference) is None:
            made = _named(made, version.reference, reference)
    return made


def plain(reference: str) -> str:
    """NAME@3 for NAME@v3 and NAME@03; others as they are."""
    name, _, selector = reference.partition("@")
    match = SELECTOR.fullmatch(selector)
    return f"{name}@{match[1]}" if match else reference


def _named(catalog: Catalog, id: str, name: str) -> Catalog:
    """The catalog with one more name of an entry."""
    entries = [
        replace(entry, names=(id, *sorted([*entry.names[1:], name]))) if entry.id == id else entry
        for entry in catalog.entries
    ]
    return replace(catalog, entries=tuple(entries))


def names_another_version(catalog: Catalog, reference: str) -> bool:
    """Whether a reference is NAME@number and the catalog has a version of the same name."""
    name, _, number = reference.partition("@")
    is_plain = number.isascii() and number.isdigit() and len(number) <= 9
    return is_plain and name in {version.name for version in catalog.versions}


def _extended(catalog: Catalog, version: Version, source: str) -> Catalog:
    """The catalog with one more version. `source`: the version that determined the base, for the error's text."""
    _check_kind(version)
    _check_base(version, catalog.base, source)
    is_first = all(other.name != version.name for other in catalog.versions)
    aliases = [f"{version.name}@{alias}" for alias in version.aliases]
    entry = Entry(
        id=version.reference,
        names=(version.reference, *([version.name] if is_first else []), *aliases),
        kind=version.card.kind,
        version=version,
        created=unix_time(version.card.created),
    )
    if catalog.entries[0].id in entry.names:
        raise InputError(f"{version.reference} has the same name as its base; publish it under another one")
    return replace(catalog, entries=(*catalog.entries, entry))


def _check_kind(version: Version) -> None:
    kind = version.card.kind
    if kind not in SERVABLE:
        raise InputError(
            f"{version.reference} is of kind {kind}, which gives no answers; allowed: {', '.join(SERVABLE)}"
        )


def _check_base(version: Version, base: Base, source: str) -> None:
    card, facts = version.card, base.facts
    if card.base_revision != facts.revision_hash:
        raise InputError(
            f"{version.reference} was tuned from {card.base} ({card.base_revision[:12]}), "
            f"this endpoint's base is "
            f"{base.name_or_path} ({facts.revision_hash[:12]}{source}); serve it from an endpoint of its own"
        )
    if card.base_loading["dtype"] != base.dtype.value:
        raise InputError(
            f"{version.reference} was tuned with model.dtype={card.base_loading['dtype']}, this endpoint's base has "
            f"{base.dtype.value}{source}; serve it from an endpoint of its own"
        )


def _base_id(base: Base) -> str:
    folder = Path(base.name_or_path).expanduser()
    return folder.name if folder.is_dir() else base.name_or_path


def unix_time(created: str) -> int:
    """Of a card's `created`, seconds."""
    return calendar.timegm(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ"))
