"""Moves every job to its end: check its files, queue, run, read what it left.

One thread owns all statuses. Everything it knows is in the store, so it can be killed at any moment: the next one reads
the store and goes on. An attempt's Ray job has an id that is stored before it is submitted, and Ray takes an id once;
so none is lost and none runs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.service.records import Event, Status, TuningRequest


@dataclass(frozen=True)
class Job:
    """A job and how far it is."""

    request: TuningRequest
    status: Status
    place: int | None
    """Its place in the queue, from 1; None when it isn't queued."""


class Controller:
    """The jobs of all owners. Its methods may be called from any thread; those that change a job return once that is
    stored."""

    def start(self) -> None:
        """Look after jobs in a thread of its own until `close`."""
        raise NotImplementedError

    def close(self) -> None:
        """Jobs that run on the cluster run on."""
        raise NotImplementedError

    def create(self, request: TuningRequest) -> Job:
        """Raises ApiError 429 for a key with too many unfinished jobs or no device hours left."""
        raise NotImplementedError

    def job(self, id: str, owner: str) -> Job | None:
        """None where there is no such job, or it is another owner's."""
        raise NotImplementedError

    def jobs(self, owner: str) -> list[Job]:
        """The newest first."""
        raise NotImplementedError

    def cancel(self, id: str, owner: str) -> Job | None:
        """None as `job`. Raises ApiError 400 for a job that has ended."""
        raise NotImplementedError

    def pause(self, id: str, owner: str) -> Job | None:
        """Raises ApiError 400 for one that has ended or is paused."""
        raise NotImplementedError

    def resume(self, id: str, owner: str) -> Job | None:
        """Raises ApiError 400 for one that isn't paused."""
        raise NotImplementedError

    def events(self, id: str, owner: str) -> Sequence[Event] | None:
        """All so far, the oldest first; None as `job`."""
        raise NotImplementedError

    def device_hours(self, owner: str) -> float:
        """What an owner's jobs have taken so far."""
        raise NotImplementedError
