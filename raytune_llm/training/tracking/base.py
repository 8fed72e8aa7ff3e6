"""The contract of trackers, which log a run's metrics during training, and the composition of several trackers.

A tracker is a module here with a dataclass that implements Tracker, and a YAML in conf/tracking; jsonl is always on
and needs no YAML. Trackers get finished numbers and know nothing of methods, Ray or torch. `start_all` combines any
number of them into one run; with none, as in workers that log nothing, that run does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run that a tracker starts to log."""

    name: str
    """The trial's id, or the job's name outside a sweep."""
    group: str | None
    """The sweep's name; None outside a sweep."""
    config: dict[str, Any]
    """The job's name, and what the trial varies, by its keys."""
    directory: str
    """The run's folder: absolute path or URI."""
    from_step: int
    """The optimizer step of the checkpoint from which the run resumes, 0 = a new run. Later steps are logged again."""

    @property
    def resumed(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return self.from_step > 0


class Run(Protocol):
    """The log of one run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at an optimizer step. Steps never decrease; a step may be repeated with other metrics."""
        ...

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """End the log with the final metrics; `failed` = the run did not complete. Called once."""
        ...


class Tracker(Protocol):
    """A destination of metrics."""

    def start(self, info: RunInfo) -> Run:
        """Start or resume a run's log, before any training. Raises InputError when the tracker can't be used as
        configured."""
        ...


@dataclass(frozen=True)
class CompositeRun:
    """Several logs of one run; without any, metrics are discarded."""

    runs: Sequence[Run]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for run in self.runs:
            run.log(step, metrics)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """Finish all of them, also when one raises."""
        with contextlib.ExitStack() as stack:
            for run in reversed(self.runs):
                stack.callback(run.finish, summary, failed)


def start_all(trackers: Iterable[Tracker], info: RunInfo) -> Run:
    """Start all trackers as one run. When one raises, those started before it are finished as failed."""
    runs: list[Run] = []
    with contextlib.ExitStack() as undo:
        for tracker in trackers:
            runs.append(tracker.start(info))
            undo.callback(runs[-1].finish, {}, True)
        undo.pop_all()
    return CompositeRun(tuple(runs))
