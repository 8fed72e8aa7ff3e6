"""Which waiting job starts next: fair among owners, within the limits. Pure functions of what is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """A job in the queue."""

    id: str
    owner: str
    created: float
    """Unix time, seconds."""


@dataclass(frozen=True)
class Limits:
    """How many jobs may run at once."""

    in_all: int
    per_owner: int | None
    """None: only the limit in all."""

    def has_room(self, running: int) -> bool:
        """Whether an owner with so many running jobs may start one more."""
        return self.per_owner is None or running < self.per_owner


def next_job(
    waiting: Iterable[Waiting], running: Mapping[str, int], last_start: Mapping[str, float], limits: Limits
) -> Waiting | None:
    """The job to start now, None when there is none or no room.

    Of the owners below their limit, that with the fewest running jobs; of equals, the one whose last start is longest
    ago; of its jobs, the oldest.

    Args:
        running: jobs of each owner that hold a place.
        last_start: Unix time at which a job of each owner started last; owners without one come first.
    """
    if sum(running.values()) >= limits.in_all:
        return None
    allowed = [job for job in waiting if limits.has_room(running.get(job.owner, 0))]
    return min(allowed, key=lambda job: _order(job, running, last_start), default=None)


def order(
    waiting: Sequence[Waiting], running: Mapping[str, int], last_start: Mapping[str, float], limits: Limits
) -> list[str]:
    """The ids of all waiting jobs in the order in which they would start if no running job ended before them and none
    came: owners at their limit come last."""
    running, last_start = Counter(running), dict(last_start)
    now, found = max(last_start.values(), default=0.0), []
    left: dict[str, list[Waiting]] = {}
    for job in sorted(waiting, key=lambda job: (job.created, job.id), reverse=True):
        left.setdefault(job.owner, []).append(job)
    while left:
        oldest = [jobs[-1] for jobs in left.values()]
        allowed = [job for job in oldest if limits.has_room(running[job.owner])] or oldest
        first = min(allowed, key=lambda job: _order(job, running, last_start))
        left[first.owner].pop()
        if not left[first.owner]:
            del left[first.owner]
        found.append(first.id)
        now += 1
        running[first.owner] += 1
        last_start[first.owner] = now
    return found


def _order(job: Waiting, running: Mapping[str, int], last_start: Mapping[str, float]) -> tuple[int, float, float, str]:
    return running.get(job.owner, 0), last_start.get(job.owner, -math.inf), job.created, job.id
