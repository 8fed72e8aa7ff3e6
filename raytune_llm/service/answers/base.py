"""The contract of what answers chats for the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from starlette.types import ASGIApp

if TYPE_CHECKING:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.deploy.config import Serve


class Answering(Protocol):
    """Answers for all offered bases and the versions tuned from them."""

    def app_of(self, base: str) -> ASGIApp:
        """The app with the endpoint's routes (/v1/chat/completions, /v1/completions, /v1/responses) for an offered base
        and for any version of the registry tuned from it. May load the base at the first request."""
        ...

    def close(self) -> None:
        """Let open answers end, and free what was loaded."""
        ...


class Answers(Protocol):
    """Where answers are computed."""

    def start(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base]) -> Answering:
        """Ready to answer for these bases, by their offered names. Raises InputError."""
        ...
