"""What the routes work with, and how they get it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request

from raytune_llm.service.config import Service
from raytune_llm.service.controller import Controller
from raytune_llm.service.records import StoredFile, owner_of
from raytune_llm.service.store import Store
from raytune_llm.serving.api.auth import KEY_IN_SCOPE
from raytune_llm.stores.registry import Registry

if TYPE_CHECKING:
    from raytune_llm.models.base import Base


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The parts of a service that answer requests."""

    store: Store
    controller: Controller
    service: Service
    bases: Mapping[str, Base]
    """Those offered, by name."""
    key_hashes: tuple[str, ...]
    """SHA-256 of the API keys, in hexadecimal; none = no key is asked for."""
    more: Sequence[APIRouter] = ()
    """Routes of other parts: chats, the page."""
    open_paths: tuple[str, ...] = ()
    """Paths that may be read without a key, and hold no data; one that ends in '/' means all below it."""
    body_bytes: Mapping[str, int] = field(default_factory=dict)
    """Largest request body by path, where it isn't bounds.JSON_BYTES."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held where a file is deleted, and where a job that needs it is made."""
    arriving: Counter[str] = field(default_factory=Counter)
    """Bytes of files that are being stored, by owner; changed under the lock."""
    streams: Counter[str] = field(default_factory=Counter)
    """Open streams of events, by owner; changed by the event loop alone."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the service ends: streams of events end too, without [DONE]."""

    @cached_property
    def registry(self) -> Registry:
        """The versions that jobs publish and continue."""
        return Registry(f"{self.store.home}/registry")

    def file(self, id: str, owner: str) -> StoredFile | None:
        """None where there is no such file, or it is another owner's."""
        found = self.store.file(id)
        return found if found is not None and found.owner == owner else None

    def files(self, owner: str) -> list[StoredFile]:
        """The oldest first."""
        return [file for file in self.store.files() if file.owner == owner]


def _backend(request: Request) -> Backend:
    return request.app.state.backend


def _owner(request: Request) -> str:
    return owner_of(request.scope[KEY_IN_SCOPE])


BackendOf = Annotated[Backend, Depends(_backend)]
"""The backend of the app that is asked."""
Owner = Annotated[str, Depends(_owner)]
"""Who asks, by the request's key."""
