"""Who writes rationales and labels: one file a kind of teacher, chosen by conf/teacher.

A teacher is asked plain prompts and answers plain text. `open` runs where the answers are made (a Ray actor); all else
runs on the driver. Everything that decides an answer stands in `identity` and in Sampling, by which answers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raytune_llm.errors import require


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    """0 = the first choice always."""
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...]
    """Texts before which an answer ends."""
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a teacher: the prompt, and which of several samples it is (0, 1, …)."""

    prompt: str
    sample: int


@dataclass(frozen=True, slots=True)
class Response:
    """What a teacher answered."""

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    cost_usd: float
    is_cut: bool
    """Whether the prompt lost its beginning, being too long for the teacher."""


@dataclass(frozen=True)
class Secret:
    """A credential on its way to where it is used; never shown."""

    value: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The actors that hold a teacher."""

    num_workers: int
    """Actors at work at the same time; ≥ 1."""
    cpus_per_worker: float
    """CPUs reserved for each; > 0."""
    use_gpu: bool | None
    """One GPU for each; null = use GPUs when the cluster has any."""

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, "teacher.workers.num_workers", self.num_workers, "≥ 1")
        require(self.cpus_per_worker > 0, "teacher.workers.cpus_per_worker", self.cpus_per_worker, "> 0")


class TeacherError(RuntimeError):
    """The teacher can't be asked, or doesn't answer in a form that is understood."""


Client = Callable[[Sequence[Request], Sampling], list[Response]]
"""Answers to a batch, in its order. Raises TeacherError."""


class Teacher(Protocol):
    """What conf/teacher chooses."""

    @property
    def is_present(self) -> bool:
        """Whether there is anybody to ask."""
        ...

    @property
    def name(self) -> str:
        """How rows and reports call it."""
        ...

    @property
    def workers(self) -> Workers:
        """The actors that hold it."""
        ...

    def identity(self, registry_dir: str) -> dict[str, Any]:
        """All that decides its answers besides prompt and sampling, as plain JSON without secrets. Raises ValueError
        when there is no such teacher."""
        ...

    def credential(self) -> Secret | None:
        """What the driver knows and the actors need. Raises ValueError when it is missing."""
        ...

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        """Load or connect."""
        ...
