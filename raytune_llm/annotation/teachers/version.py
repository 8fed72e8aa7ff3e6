"""A version of the registry as a teacher, on its own base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Secret, Workers
from raytune_llm.annotation.teachers.local import _asker
from raytune_llm.models.base import Base


@dataclass(frozen=True, kw_only=True)
class VersionTeacher:
    """A tuned version, on its own base."""

    version: str
    """Registry reference: NAME, NAME@champion or NAME@3."""
    chat: bool
    """Whether the prompt is sent as a user's turn in the version's chat template, else as plain text."""
    workers: Workers

    is_present = True

    @property
    def name(self) -> str:
        return self.version

    def identity(self, registry_dir: str) -> dict[str, Any]:
        version = self._resolved(registry_dir)
        return {"version": version.reference, "base": version.card.base_revision, "chat": self.chat}

    def credential(self) -> Secret | None:
        return None

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        version = self._resolved(registry_dir)
        return _asker(Base.from_loading(version.card.base_loading), version.path, self.chat, use_gpu)

    def _resolved(self, registry_dir: str) -> Any:
        from raytune_llm.stores.registry import Registry

        return Registry(registry_dir).resolve(self.version)
