"""All jobs in memory, the same as in the store: a change is stored first, then known.

The lock is held for one read or write of the store, never while a cluster or a check is asked.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytune_llm.service.budget import STORE_SECONDS, counted, device_hours
from raytune_llm.service.event_log import EventLog
from raytune_llm.service.queue import Waiting
from raytune_llm.service.records import Event, State, Status, TuningRequest, Wanted
from raytune_llm.service.run_files import Trial
from raytune_llm.service.store import Store


@dataclass(eq=False)
class Entry:
    """A job as it is now. Its status is replaced by JobTable.change alone."""

    request: TuningRequest
    status: Status
    log: EventLog | None = None
    """None while it isn't read."""
    stored: float = 0.0
    """When its status was stored last, Unix time."""

    @property
    def begun(self) -> float:
        """When it was created, Unix time; request.created has whole seconds, within which jobs have an order too."""
        created = self.request.created
        return created + min(max(self.status.changes[0][1] - created, 0.0), 0.999)

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue."""
        return not self.status.is_submitted and self.status.state is State.queued

    @property
    def is_resuming(self) -> bool:
        """Whether it will be in the queue as soon as the attempt that was paused has ended."""
        return self.status.state is State.paused and self.status.wanted is Wanted.run

    @property
    def waiting(self) -> Waiting:
        """As the queue knows it."""
        return Waiting(self.request.id, self.request.owner, self.begun)


class JobTable:
    """The jobs of a store."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self.store, self.now, self.lock = store, now, threading.RLock()
        found = []
        for request in store.requests():
            status = store.status(request.id)
            assert status is not None, request.id
            found.append(Entry(request, status))
        self._entries = {entry.request.id: entry for entry in sorted(found, key=lambda entry: entry.begun)}
        self._unannounced = [entry for entry in self._entries.values() if not entry.status.state.is_final]

    def all(self) -> list[Entry]:
        """The oldest first."""
        with self.lock:
            return list(self._entries.values())

    def of(self, owner: str) -> list[Entry]:
        """An owner's, the oldest first."""
        return [entry for entry in self.all() if entry.request.owner == owner]

    def find(self, id: str, owner: str) -> Entry | None:
        """None where there is no such job of this owner."""
        with self.lock:
            entry = self._entries.get(id)
        return entry if entry is not None and entry.request.owner == owner else None

    def add(self, request: TuningRequest) -> Entry:
        """Store a new job; it exists once its request is there."""
        with self.lock:
            status = Status(state=State.validating_files, changes=((State.validating_files.value, self.now()),))
            self.store.write_status(request.id, status)
            self.store.add_job(request)
            entry = self._entries[request.id] = Entry(request, status)
            self._unannounced.append(entry)
            return entry

    def change(self, entry: Entry, expected: Collection[State], state: State | None = None, **fields: Any) -> bool:
        """Store a change, unless the job is in none of the expected states any more; whether it was stored. Its events
        follow by `announce_all`."""
        with self.lock:
            before = entry.status
            if before.state not in expected:
                return False
            if state is not None and state is not before.state:
                fields |= {"state": state, "changes": (*before.changes, (state.value, self.now()))}
            status = replace(before, **fields)
            if status != before:
                self._store_status(entry, status)
                self._unannounced.append(entry)
            return True

    def count(self, entry: Entry, *, until: float, devices: float, num_running: int) -> None:
        """Add the device time of a running job, as budget.counted; stored now and then, and with any change."""
        with self.lock:
            status = counted(entry.status, until=until, devices=devices, num_running=num_running)
            if self.now() - entry.stored >= STORE_SECONDS and status != entry.status:
                self._store_status(entry, status)
            entry.status = status

    def _store_status(self, entry: Entry, status: Status) -> None:
        self.store.write_status(entry.request.id, status)
        entry.status, entry.stored = status, self.now()

    def announce(self, entry: Entry, trials: Sequence[Trial] = (), total_steps: int | None = None) -> EventLog:
        """Store events for what has changed, and for new points of its trials."""
        with self.lock:
            id = entry.request.id
            log = entry.log or EventLog(entry.request, self.store.events(id))
            entry.log = None  # read again, should the next lines fail
            has_changes, has_points = log.add_changes(entry.status), log.add_points(trials, total_steps)
            if has_points or has_changes:
                self.store.write_events(id, log.events)
            if not entry.status.state.is_final:
                entry.log = log
            return log

    def announce_all(self) -> None:
        """Store the events of all changes. Raises OSError; the next call tries again."""
        while self._unannounced:
            self.announce(self._unannounced[0])
            del self._unannounced[0]

    def events(self, entry: Entry) -> list[Event]:
        """All so far."""
        with self.lock:
            return list(self.announce(entry).events)

    def running(self) -> Counter[str]:
        """Jobs of each owner that hold a place: those that may be on the cluster."""
        return Counter(entry.request.owner for entry in self.all() if entry.status.is_submitted)

    def last_starts(self) -> dict[str, float]:
        """When a job of each owner started last, Unix time."""
        found: dict[str, float] = {}
        for entry in self.all():
            started = entry.status.since(State.running)
            if started is not None:
                found[entry.request.owner] = max(started, found.get(entry.request.owner, started))
        return found

    def device_hours(self, owner: str) -> float:
        """What an owner's jobs have taken so far."""
        return device_hours(entry.status for entry in self.of(owner))
