"""Engines in the service's own process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.service.answers.base import Answering

if TYPE_CHECKING:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.deploy.config import Serve


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """One engine a base, in this process, loaded at the first request for it."""

    def start(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base]) -> Answering:
        raise NotImplementedError
