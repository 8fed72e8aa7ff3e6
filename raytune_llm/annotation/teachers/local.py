"""A pretrained model as the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.local_client import local_client
from raytune_llm.annotation.teachers.base import Client, Workers
from raytune_llm.models.base import Base
from raytune_llm.models.openai_client import Secret


@dataclass(frozen=True, kw_only=True)
class LocalTeacher:
    """A pretrained model, causal or encoder-decoder."""

    model: Base
    chat: bool
    """Whether prompts become a user's turn in the model's chat template, else plain text."""
    workers: Workers

    is_present = True

    @property
    def name(self) -> str:
        return self.model.name_or_path

    def identity(self, registry_dir: str) -> dict[str, Any]:
        facts = self.model.facts
        return {"weights": facts.revision_hash, "dtype": self.model.dtype.value, "chat": self.chat}

    def credential(self) -> Secret | None:
        return None

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        return local_client(self.model, None, chat=self.chat, use_gpu=use_gpu)
