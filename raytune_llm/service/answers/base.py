"""The contract of what answers chats for the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from starlette.types import ASGIApp

from raytune_llm.errors import InputError
from raytune_llm.serving.catalog import base_alone

if TYPE_CHECKING:
    from raytune_llm.models.base import Base
    from raytune_llm.serving.deploy.config import Serve


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The Ray cluster that the service's jobs run on."""

    environment: Mapping[str, str]
    """Of a process that joins it."""
    has_gpu: Callable[[], bool]
    """Whether it counts GPUs. Raises ConnectionError."""


class Answering(Protocol):
    """Answers for all offered bases and the versions tuned from them."""

    def app_of(self, base: str) -> ASGIApp:
        """The app with the endpoint's routes (/v1/chat/completions, /v1/completions, /v1/responses) for an offered base
        and for any version of the registry tuned from it; it believes auth.CLIENT_HEADER. May load the base at the
        first request."""
        ...

    def close(self) -> None:
        """Free what was loaded; called when no answer is open any more."""
        ...


class Answers(Protocol):
    """Where answers are computed."""

    def start(self, serve: Serve, registry_dir: str, bases: Mapping[str, Base], cluster: Cluster) -> Answering:
        """Ready to answer for these bases, by their offered names. Raises InputError."""
        ...


def check_serve(serve: Serve, bases: Mapping[str, Base]) -> None:
    """Raise InputError for what can't answer for versions that are published later."""
    if not serve.discover:
        raise InputError("serve.discover=false: a service answers for versions that its jobs publish; leave it at true")
    for name, base in bases.items():
        serve.engine.application(lambda: None, base_alone(base, name), {}, is_guarded=True)
