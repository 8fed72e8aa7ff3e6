"""Who runs: attempts are looked after, owners without device hours are paused, and free places are given out."""

from __future__ import annotations

from raytune_llm.service.attempts import ACTIVE, Attempts
from raytune_llm.service.config import Service
from raytune_llm.service.job_table import Entry, JobTable
from raytune_llm.service.queue import Limits, next_job, order
from raytune_llm.service.records import State, Wanted
from raytune_llm.service.runner import Runner

DEVICES_SECONDS = 30.0
"""How often the cluster is asked for its devices."""


class Scheduling:
    """The places of a cluster and the queue for them."""

    def __init__(self, jobs: JobTable, attempts: Attempts, runner: Runner, service: Service) -> None:
        self._jobs, self._attempts, self._runner = jobs, attempts, runner
        self._limits = Limits(service.max_jobs, service.max_jobs_per_key)
        self._hours = service.device_hours_per_key
        self._devices, self._asked = 1.0, float("-inf")

    def step(self) -> None:
        """Look after all attempts and start what there is room for. Raises the first error that it met, OSError where
        something can't be reached or written; the next step tries again."""
        running = [entry for entry in self._jobs.all() if entry.status.is_submitted]
        devices = self._count_devices() if running else self._devices
        failures: list[Exception] = []
        for entry in running:
            try:
                self._attempts.look_after(entry, devices, len(running))
            except ConnectionError:
                raise
            except Exception as error:  # of this job alone: the others are looked after all the same
                failures.append(error)
        self._pause_spent()
        while (waiting := self._next()) is not None:
            self._attempts.begin(waiting)
        if failures:
            raise failures[0]

    def is_spent(self, owner: str) -> bool:
        """Whether an owner has no device hours left."""
        return self._hours is not None and self._jobs.device_hours(owner) >= self._hours

    def places(self) -> dict[str, int]:
        """The place of each waiting job, from 1, by its id."""
        waiting = [entry.waiting for entry in self._jobs.all() if entry.is_waiting or entry.is_resuming]
        ids = order(waiting, self._jobs.running(), self._jobs.last_starts(), self._limits)
        return {id: place for place, id in enumerate(ids, start=1)}

    def _next(self) -> Entry | None:
        entries = {entry.request.id: entry for entry in self._jobs.all() if entry.is_waiting}
        spent = {owner for owner in {entry.request.owner for entry in entries.values()} if self.is_spent(owner)}
        allowed = [entry.waiting for entry in entries.values() if entry.request.owner not in spent]
        found = next_job(allowed, self._jobs.running(), self._jobs.last_starts(), self._limits)
        return None if found is None else entries[found.id]

    def _pause_spent(self) -> None:
        """Pause what owners without device hours run, and say why their other jobs wait."""
        active = [entry for entry in self._jobs.all() if entry.status.state in ACTIVE]
        spent = {owner for owner in {entry.request.owner for entry in active} if self.is_spent(owner)}
        note = f"the {self._hours:g} device hours of this key are used up" if self._hours else ""
        for entry in active:
            if entry.request.owner not in spent:
                continue
            if entry.status.is_submitted:
                self._jobs.change(entry, ACTIVE, State.paused, wanted=Wanted.pause, note=note)
            else:
                self._jobs.change(entry, (State.queued,), note=note)

    def _count_devices(self) -> float:
        now = self._jobs.now()
        if now - self._asked >= DEVICES_SECONDS:
            self._devices, self._asked = self._runner.devices(), now
        return self._devices
