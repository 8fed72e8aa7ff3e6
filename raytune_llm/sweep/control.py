"""Commands to a running sweep as files in its run's storage: no port is opened, and any storage will do.

control/commands/ID.json    written once, by whoever gives the command
control/answers/ID.json     written once, by the sweep's driver, after it has carried the command out
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage


class Action(Enum):
    """What a running sweep can be asked to do."""

    stop = "stop"
    """One trial, or all below a quantile, after one more report."""
    clone = "clone"
    """A new trial from another one's checkpoint, with overrides."""
    extend = "extend"
    """Add to the space."""
    pause = "pause"
    """Trials report once more and wait; the sweep gives its devices back."""
    resume = "resume"
    cancel = "cancel"
    """End the sweep without a winner, after one more report of its trials."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command."""

    id: str
    """Sorts by the time it was given: time in nanoseconds (20 digits), '-', 8 random hex digits."""
    action: Action
    trial: str | None = None
    """For stop and clone."""
    quantile: float | None = None
    """For stop: all running trials whose best is worse than this quantile of all trials' bests (0 = the best)."""
    values: dict[str, Any] = field(default_factory=dict)
    """For clone: what differs from the trial, by dotted key."""
    space: dict[str, Any] = field(default_factory=dict)
    """For extend: nested keys as in sweep.space."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a command."""

    command: str
    done: bool
    """False where it was refused."""
    text: str


class Commands:
    """The commands to one run."""

    def __init__(self, run_dir: str) -> None:
        self._storage = open_storage(f"{run_dir}/control")
        self.period_seconds = 1.0 if is_local(run_dir) else 5.0
        """How often a driver should look."""

    def send(self, action: Action, **about: Any) -> Command:
        """Give a command."""
        command = Command(id=f"{time.time_ns():020d}-{os.urandom(4).hex()}", action=action, **about)
        content = asdict(command) | {"action": action.value}
        self._storage.write(f"commands/{command.id}.json", to_json(content).encode())
        return command

    def pending(self) -> list[Command]:
        """Commands without an answer, the oldest first."""
        answered = set(self._storage.files("answers"))
        found = []
        for name in self._storage.files("commands"):
            if name not in answered:
                content = json.loads(self._storage.read(f"commands/{name}"))
                found.append(Command(**content | {"action": Action(content["action"])}))
        return found

    def answer(self, command: Command, *, done: bool, text: str) -> None:
        """Say what became of a command."""
        answer = Answer(command=command.id, done=done, text=text)
        self._storage.write(f"answers/{command.id}.json", to_json(asdict(answer)).encode())
