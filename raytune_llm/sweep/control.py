"""Commands to a running sweep as files in its run's storage: no port is opened, and any storage will do.

control/commands/ID.json    written once, by whoever gives the command
control/answers/ID.json     written once, by the sweep's driver, after it has carried the command out
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


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
