"""A registry version as the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.local_client import local_client
from raytune_llm.annotation.teachers.base import Client, Workers
from raytune_llm.models.base import Base
from raytune_llm.models.openai_client import Secret
from raytune_llm.stores.card import Version
from raytune_llm.stores.registry import Registry


@dataclass(frozen=True, kw_only=True)
class VersionTeacher:
    """A tuned version, on its own base."""

    version: str
    """Registry reference: NAME, NAME@champion or NAME@3."""
    chat: bool
    """Whether prompts become a user's turn in the version's chat template, else plain text."""
    workers: Workers

    is_present = True

    @property
    def name(self) -> str:
        return self.version

    def identity(self, registry_dir: str) -> dict[str, Any]:
        version = self._resolve(registry_dir)
        return {"version": version.reference, "base": version.card.base_revision, "chat": self.chat}

    def credential(self) -> Secret | None:
        return None

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        version = self._resolve(registry_dir)
        base = Base.from_loading(version.card.base_loading)
        return local_client(base, version.path, chat=self.chat, use_gpu=use_gpu)

    def _resolve(self, registry_dir: str) -> Version:
        return Registry(registry_dir).resolve(self.version)
