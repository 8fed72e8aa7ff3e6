"""Nobody is asked: the records have what the method needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Secret, Workers


@dataclass(frozen=True, kw_only=True)
class NoTeacher:
    """The records are taken as they are."""

    is_present = False
    name = "none"

    @property
    def workers(self) -> Workers:
        raise ValueError(_MESSAGE)

    def identity(self, registry_dir: str) -> dict[str, Any]:
        raise ValueError(_MESSAGE)

    def credential(self) -> Secret | None:
        raise ValueError(_MESSAGE)

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        raise ValueError(_MESSAGE)


_MESSAGE = "teacher=none has nobody to ask; choose teacher=local, teacher=version or teacher=openai"
