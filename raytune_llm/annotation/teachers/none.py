"""No teacher: the records have everything that the method needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Workers
from raytune_llm.errors import InputError
from raytune_llm.models.openai_client import Secret


@dataclass(frozen=True, kw_only=True)
class NoTeacher:
    """The records are used as they are."""

    is_present = False
    name = "none"

    @property
    def workers(self) -> Workers:
        raise InputError(_MESSAGE)

    def identity(self, registry_dir: str) -> dict[str, Any]:
        raise InputError(_MESSAGE)

    def credential(self) -> Secret | None:
        raise InputError(_MESSAGE)

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        raise InputError(_MESSAGE)


_MESSAGE = "teacher=none can't annotate; choose teacher=local, teacher=version or teacher=openai"
