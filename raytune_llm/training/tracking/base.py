"""Where metrics go while a run is training: the contract of trackers, and several of them as one.

A tracker is one module here with a dataclass of the Tracker shape, and one YAML in conf/tracking; jsonl needs no
YAML, it is always on. Trackers see finished numbers: they know nothing of methods, Ray or torch. Several of them, and
none, are ordinary runs: `start_all([], info)` is for workers that log nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker receives of a run when it starts."""

    name: str
    """Trial id, or the name of a run that is no trial."""
    group: str | None
    """Name of the sweep the run belongs to."""
    config: dict[str, Any]
    """The resolved config of the run, the trial's own values applied."""
    directory: str
    """The run's own folder: absolute path or URI."""
    from_step: int
    """Optimizer steps done when the run starts here, 0 for a new run. What was logged beyond them is logged again."""

    @property
    def resumed(self) -> bool:
        """Whether the run resumes from a checkpoint of its own."""
        return self.from_step > 0


class Run(Protocol):
    """A run that is being logged."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at an optimizer step; steps never fall, and may repeat with other metrics."""
        ...

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """The run is over, with these final metrics. Called once."""
        ...


class Tracker(Protocol):
    """A file in tracking/ with a dataclass of this shape is a tracker; its YAML names it."""

    def start(self, info: RunInfo) -> Run:
        """Start or resume the run. Raises InputError, before any training, for what the user must correct."""
        ...


@dataclass(frozen=True)
class CompositeRun:
    """Several runs as one; none at all is a run that logs nowhere."""

    runs: Sequence[Run]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for run in self.runs:
            run.log(step, metrics)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """Finishes every run, also when one of them raises."""
        with contextlib.ExitStack() as stack:
            for run in reversed(self.runs):
                stack.callback(run.finish, summary, failed)


def start_all(trackers: Iterable[Tracker], info: RunInfo) -> Run:
    """Start all trackers, as one run. When one can't start, those before it are finished as failed."""
    runs: list[Run] = []
    with contextlib.ExitStack() as undo:
        for tracker in trackers:
            runs.append(tracker.start(info))
            undo.callback(runs[-1].finish, {}, True)
        undo.pop_all()
    return CompositeRun(tuple(runs))
