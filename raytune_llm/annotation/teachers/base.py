"""The teacher's contract: who writes rationales and labels, one file for each kind, chosen by conf/teacher.

A teacher completes plain prompts with plain text. `open` runs in a worker (a Ray actor), everything else on the
driver. All that decides a response is in `identity`, Sampling and the prompt: responses are cached by these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.errors import require
from raytune_llm.models.openai_client import Secret


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn."""

    temperature: float
    """≥ 0; 0 = greedy."""
    top_p: float
    """0 < top_p ≤ 1."""
    max_new_tokens: int
    stop: tuple[str, ...]
    """Texts that end a response, and are not part of it."""
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for a teacher."""

    prompt: str
    sample: int
    """Which of the prompt's samples this is: 0, 1, …"""


@dataclass(frozen=True, slots=True)
class Response:
    """A teacher's completion of a prompt."""

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    cost_usd: float
    is_cut: bool
    """Whether the beginning of the prompt was cut off, being too long for the teacher."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The actors that hold a teacher."""

    num_workers: int
    """Actors that run at the same time; ≥ 1."""
    cpus_per_worker: float
    """CPUs reserved for each; > 0."""
    use_gpu: bool | None
    """One GPU for each; null = use GPUs when the cluster has any."""

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, "teacher.workers.num_workers", self.num_workers, "≥ 1")
        require(self.cpus_per_worker > 0, "teacher.workers.cpus_per_worker", self.cpus_per_worker, "> 0")


class TeacherError(RuntimeError):
    """The teacher can't be reached, refuses a request, or responds in an unknown format."""


Client = Callable[[Sequence[Request], Sampling], list[Response]]
"""Responses to a batch of requests, in their order. Raises TeacherError."""


class Teacher(Protocol):
    """A kind of teacher."""

    @property
    def is_present(self) -> bool:
        """Whether there is a teacher at all."""
        ...

    @property
    def name(self) -> str:
        """The teacher's name in records and reports."""
        ...

    @property
    def workers(self) -> Workers:
        """The actors that hold it."""
        ...

    def identity(self, registry_dir: str) -> dict[str, Any]:
        """All that decides a response besides prompt and sampling, as plain JSON without secrets. Raises InputError
        when there is no such teacher."""
        ...

    def credential(self) -> Secret | None:
        """The driver's credential for the workers. Raises InputError when it is missing."""
        ...

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        """Load the teacher, or connect to it."""
        ...
