"""A resident base as a long-lived Ray actor, on one GPU or some CPUs: trials join it, ask for their next report, and
leave.

One thread trains; it steps all trials together, on past an evaluation while its trial's fate is decided, and waits
before the next one of a trial that hasn't been told what to do. Of a trial that is stopped, those steps are lost.
Callers hold a lease: a trial that nobody asked about for LEASE_SECONDS is freed, so that a lost driver leaves no slot
behind. An actor that died is started again by Ray, empty; its trials join again from their checkpoints.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from raytune_llm.cluster import gc_paused
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.training.config import Report
from raytune_llm.training.tracking.base import RunInfo, start_all
from raytune_llm.training.tracking.jsonl import JSONL

LEASE_SECONDS = 60.0
WAIT_SECONDS = 10.0
"""Longest time a call waits for a report before it is answered with none yet."""
GATHER_SECONDS = 2.0
"""How long the trials that are to begin together wait for the next of them to come."""


@dataclass
class TrialHandle:
    """What the actor owes one trial."""

    reports: deque[Report] = field(default_factory=deque)
    ended: str | None = None
    awaited: bool = False
    """Whether its last report has been accepted and more is wanted."""
    contact: float = field(default_factory=time.monotonic)


class PackActor:
    """Methods are called by many proxies at once; each holds the lock but while it waits."""

    def __init__(
        self,
        job: TrainJob,
        examples: bytes,
        group: str,
        *,
        wanted: int,
        max_rank: int,
        threads: int,
        use_gpu: bool,
        speaks: bool,
        together: bool,
    ) -> None:
        """`examples` is a pickled ray.ObjectRef: one among the arguments would make Ray warn that it can't outlive its
        owner. One of several actors `speaks` of what its planner chose; the others choose alike. For a scheduler that
        compares reports the first `wanted` trials begin `together`."""
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        with gc_paused():
            import torch

            from raytune_llm.training.packed.trials import PackedTrials

            torch.set_num_threads(threads)
            self.resident = PackedTrials(
                job,
                ray.get(ray.cloudpickle.loads(examples)),
                wanted=wanted,
                max_rank=max_rank,
                device="cuda" if use_gpu else "cpu",
                say=partial(print, flush=True) if speaks else lambda line: None,
            )
        self.group = group
        self.seats: dict[str, TrialHandle] = {}
        self.coming: deque[Any] = deque()
        self.awaits_first = self.resident.capacity if together else 0
        """How many are to begin together; 0 once they have."""
        self.joined = time.monotonic()
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.stopping = False
        self.thread = threading.Thread(target=self._train, name="pack", daemon=True)
        self.thread.start()

    def capacity(self) -> int:
        """Slots in all."""
        return self.resident.capacity

    def num_free(self) -> int:
        with self.changed:
            return self.resident.capacity - len(self.seats)

    def join(self, placement: Any) -> bool:
        """Take a trial in at the next step; False when no slot is free. A trial that is in already starts over from its
        checkpoint."""
        trial_id = placement.trial.id
        with self.changed:
            self._check()
            if trial_id in self.seats:
                self._drop(trial_id)
            if len(self.seats) >= self.resident.capacity:
                return False
            self.seats[trial_id] = TrialHandle(awaited=True)
            self.coming.append(placement)
            self.joined = time.monotonic()
            self.changed.notify_all()
        return True

    def next(self, trial_id: str) -> tuple[list[Report], str | None]:
        """The trial's new reports and, after its last one, why it ended; ([], None) when there is nothing yet. To ask
        means that the reports before have been accepted and training may go on."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self.changed:
            while True:
                self._check()
                seat = self.seats.get(trial_id)
                if seat is None:
                    raise KeyError(f"trial {trial_id} has no slot here")
                seat.contact = time.monotonic()
                if seat.reports or seat.ended or time.monotonic() >= deadline:
                    break
                if not seat.awaited:
                    seat.awaited = True  # who is told wakes up here too: to tell again would never end
                    self.changed.notify_all()
                self.changed.wait(deadline - time.monotonic())
            reports = list(seat.reports)
            seat.reports.clear()
            seat.awaited = not reports and seat.ended is None
            if seat.ended:
                del self.seats[trial_id]
            return reports, seat.ended

    def leave(self, trial_id: str) -> None:
        """Free the trial's slot, if it has one."""
        with self.changed:
            self._drop(trial_id)
            self.changed.notify_all()

    def stop(self) -> None:
        """End training and close every tracker."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.thread.join()

    def _check(self) -> None:
        if self.failure is not None:
            raise RuntimeError(f"packed training failed: {self.failure}") from self.failure

    def _drop(self, trial_id: str) -> None:
        self.seats.pop(trial_id, None)
        self.coming = deque(placement for placement in self.coming if placement.trial.id != trial_id)

    def _train(self) -> None:
        try:
            while self._wait():
                self._deliver(self.resident.advance())
        except BaseException as error:
            logging.getLogger(__name__).exception("packed training failed")
            self.failure = error
        finally:
            self.resident.close()
            with self.changed:
                self.changed.notify_all()

    def _wait(self) -> bool:
        """Bring membership up to date; return when all trials may go on by a step, or False to end."""
        with self.changed:
            while not self.stopping:
                self._settle()
                members = list(self.resident.members)
                decided = all(self.seats[id].awaited or not self.resident.reports_next(id) for id in members)
                if members and decided and not self._gathers():
                    self.awaits_first = 0
                    return True
                self.changed.wait(1.0)
        return False

    def _gathers(self) -> bool:
        """Whether the trials that are to begin together are still coming."""
        return len(self.resident.members) < self.awaits_first and time.monotonic() < self.joined + GATHER_SECONDS

    def _settle(self) -> None:
        """Free what left or whose lease ran out; take in what came."""
        now = time.monotonic()
        for trial_id in [i for i, seat in self.seats.items() if now - seat.contact > LEASE_SECONDS]:
            self._drop(trial_id)
        for trial_id in [i for i in self.resident.members if i not in self.seats]:
            self.resident.leave(trial_id)
        while self.coming:
            placement = self.coming.popleft()
            if placement.trial.id in self.resident.members:
                self.resident.leave(placement.trial.id)
            info = RunInfo(
                name=placement.trial.id,
                group=self.group,
                config={"job": placement.job.name, **placement.trial.values},
                directory=placement.directory,
                from_step=stored_step(placement.directory),
            )
            run = start_all([JSONL(), *placement.job.tracking.values()], info)
            seat = self.seats[placement.trial.id]
            reports, ended = self.resident.join(placement, run)
            seat.reports.extend(reports)
            seat.awaited = not reports
            if ended is not None:
                self._end(placement.trial.id, ended)
            self.changed.notify_all()

    def _deliver(self, reports: dict[str, tuple[Report, str | None]]) -> None:
        if not reports:
            return
        with self.changed:
            for trial_id, (report, ended) in reports.items():
                seat = self.seats.get(trial_id)
                if seat is not None:
                    seat.reports.append(report)
                    seat.awaited = False
                if ended is not None:
                    self._end(trial_id, ended)
            self.changed.notify_all()

    def _end(self, trial_id: str, why: str) -> None:
        self.resident.leave(trial_id)
        if trial_id in self.seats:
            self.seats[trial_id].ended = why


def stored_step(directory: str) -> int:
    """The step of a trial's newest checkpoint, 0 without one."""
    from raytune_llm.training import checkpoints

    names = checkpoints.stored(directory)
    return int(names[-1].removeprefix(checkpoints.PREFIX)) if names else 0
