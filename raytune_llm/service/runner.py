"""How commands run on the cluster: each is a Ray job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class RunState(Enum):
    """How far an attempt is."""

    pending = "pending"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    stopped = "stopped"

    @property
    def is_final(self) -> bool:
        return self in (RunState.succeeded, RunState.failed, RunState.stopped)


@dataclass(frozen=True)
class Seen:
    """An attempt as the cluster knows it."""

    state: RunState
    message: str
    """Why it failed, as the cluster says."""


class Runner(Protocol):
    """A cluster that runs commands. Raises ConnectionError while it can't be reached."""

    def submit(self, submission_id: str, command: Sequence[str], metadata: Mapping[str, str]) -> None:
        """Start a command; nothing where that id was submitted before."""
        ...

    def seen(self, submission_id: str) -> Seen | None:
        """None when the cluster has never heard of it, or has lost it."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask for its end; `seen` tells when it has ended."""
        ...

    def log(self, submission_id: str) -> str:
        """What it printed; '' when that is lost."""
        ...

    def devices(self) -> float:
        """GPUs of the cluster; 1 where it has none."""
        ...
