"""The contract of trackers, which log runs' metrics during training and show what a job came to, and the composition of
several trackers.

A tracker is a module here with a dataclass that implements Tracker, and a YAML in conf/tracking; jsonl is always on
and needs no YAML. Trackers get finished numbers and know nothing of methods, Ray or torch. `start_all` combines any
number of them into one run; with none, as in workers that log nothing, that run does nothing. A tracker that also
implements JobTracker shows the job's end: the leaderboard, the version, the reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from raytune_llm.training.objective import Objective

Value = float | str
"""A value of a summary."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What was logged at a step."""

    step: int
    seconds: float
    """When, since the epoch."""
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run that a tracker starts to log."""

    name: str
    """The trial's id, or the job's name outside a sweep."""
    group: str | None
    """The sweep's name; None outside a sweep."""
    config: dict[str, Any]
    """The knobs by short keys, further settings nested (training/run_config.py)."""
    directory: str
    """The run's folder: absolute path or URI."""
    home: str
    """Folder or URI that all runs share."""
    objective: Objective
    """By which reports are compared."""
    from_step: int
    """The optimizer step of the checkpoint from which the run resumes, 0 = a new run. Later steps are logged again."""
    earlier: tuple[Line, ...] = ()
    """All that was logged up to from_step: a log that was cut off, or is written anew, is completed by it."""

    @property
    def resumed(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return self.from_step > 0


class Run(Protocol):
    """The log of one run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at an optimizer step. Steps never decrease; a step may be repeated with other metrics."""
        ...

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        """End the log with what the run came to; `failed` = it did not complete. Called once."""
        ...


@runtime_checkable
class LiveRun(Protocol):
    """A log that shows, while the run lasts, what it has come to so far."""

    def summarize(self, summary: Mapping[str, Value]) -> None:
        """Show this from now on."""
        ...


class Tracker(Protocol):
    """A destination of metrics."""

    def start(self, info: RunInfo) -> Run:
        """Start or resume a run's log, before any training. Raises InputError when the tracker can't be used as
        configured. A slow one returns at once and keeps its log in a thread (tracking/background.py)."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """What a sweep or a single run came to, as plain data."""

    run: RunInfo
    """Of a sweep its own run, named like its group; of a single run that run."""
    trials: tuple[RunInfo, ...]
    """The sweep's trials; none outside a sweep."""
    space: Mapping[str, Mapping[str, Any]]
    """The sweep's axes by short key: {"values": […]} or {"min", "max", "distribution"}."""
    columns: tuple[str, ...]
    """Of the leaderboard; none outside a sweep."""
    rows: tuple[tuple[Any, ...], ...]
    """The leaderboard, best first: a cell for each column, None where there is none."""
    summary: Mapping[str, Value]
    """The published version's metrics, and what the job took."""
    model: str
    """The published model's name in the registry."""
    version: str
    """Its registry reference, NAME@NUMBER."""
    folder: str
    """The version's files: absolute path or URI."""
    promoted: bool
    """Whether it is the champion."""
    card: Mapping[str, Any]
    """The version's description, JSON-like."""
    directory: str
    """The job's folder: absolute path or URI."""
    files: tuple[str, ...]
    """Reports and tables in it, by name."""


@runtime_checkable
class JobTracker(Protocol):
    """A tracker that also shows jobs."""

    @property
    def takes_one_run(self) -> bool:
        """Whether it has room for one run only, so that the stages before a job's own training aren't logged."""
        ...

    def begin_job(self, info: RunInfo) -> None:
        """Called once before any training, with the run of JobEnd. Raises InputError as `start`."""
        ...

    def end_job(self, end: JobEnd) -> None:
        """Show what the job came to. Called after it has published its version; again where the job was killed here."""
        ...


@dataclass(frozen=True)
class CompositeRun:
    """Several logs of one run; without any, metrics are discarded."""

    runs: Sequence[Run]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for run in self.runs:
            run.log(step, metrics)

    def summarize(self, summary: Mapping[str, Value]) -> None:
        for run in self.runs:
            if isinstance(run, LiveRun):
                run.summarize(summary)

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        """Finish all of them, also when one raises."""
        with contextlib.ExitStack() as stack:
            for run in reversed(self.runs):
                stack.callback(run.finish, summary, failed)


def start_all(trackers: Iterable[Tracker], info: RunInfo) -> CompositeRun:
    """Start all trackers as one run. When one raises, those started before it are finished as failed."""
    runs: list[Run] = []
    with contextlib.ExitStack() as undo:
        for tracker in trackers:
            runs.append(tracker.start(info))
            undo.callback(runs[-1].finish, {}, True)
        undo.pop_all()
    return CompositeRun(tuple(runs))
