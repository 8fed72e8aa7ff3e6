"""Moves every job to its end: check its files, queue, run, read what it left.

One thread owns all statuses. Everything it knows is in the store, so it can be killed at any moment: the next one reads
the store and continues. An attempt's Ray job has an id that is stored before it is submitted, and Ray takes an id once;
so none is lost and none runs twice.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from raytune_llm.service.attempts import Attempts, OpenRun
from raytune_llm.service.check_process import Check, CheckProcess
from raytune_llm.service.config import Service
from raytune_llm.service.job_table import Entry, JobTable
from raytune_llm.service.planning import Planner
from raytune_llm.service.records import Event, State, Status, TuningRequest, Wanted
from raytune_llm.service.run_files import RunFiles
from raytune_llm.service.runner import Runner
from raytune_llm.service.scheduling import Scheduling
from raytune_llm.service.store import Store
from raytune_llm.service.validation import Validation
from raytune_llm.serving.api.errors import ApiError, invalid

__all__ = ["Controller", "Job"]
UNFINISHED = tuple(state for state in State if not state.is_final)


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

    def __init__(
        self,
        store: Store,
        service: Service,
        runner: Runner,
        *,
        planner: Planner,
        start_check: Callable[[Sequence[str]], Check] | None = None,
        open_run: OpenRun = RunFiles,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Reads all jobs of the store; `start` or `step` moves them."""
        self._service = service
        self._jobs = JobTable(store, now)
        self._scheduling = Scheduling(self._jobs, Attempts(self._jobs, runner, open_run), runner, service)
        check = start_check or (lambda command: CheckProcess(command, hidden=(service.api_key_env or "",)))
        self._validation = Validation(self._jobs, planner, check, runner.has_gpu, service.check_timeout_seconds)
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tuning-controller", daemon=True)
        self._trouble: str | None = None

    def start(self) -> None:
        """Look after jobs in a thread of its own until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Jobs that run on the cluster run on."""
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._validation.close()

    @property
    def is_idle(self) -> bool:
        """Whether no job is on the cluster, so that it may be ended."""
        return not any(entry.status.is_submitted for entry in self._jobs.all())

    def step(self) -> None:
        """Move every job as far as it can be moved now. What can't be reached or written is printed once and tried
        again by the next step."""
        troubles = []
        for part in (self._validation.step, self._scheduling.step, self._jobs.announce_all):
            try:
                part()
            except OSError as error:
                troubles.append(str(error) or type(error).__name__)
            except Exception as error:  # a fault of ours in one job must not end the care for all others
                troubles.append(repr(error))
                if repr(error) not in (self._trouble or ""):
                    _printed(traceback.print_exc)
        trouble = "; ".join(troubles) or None
        if trouble != self._trouble:
            text = f"! {trouble}; trying again" if trouble else "the service's jobs move again"
            _printed(lambda: print(text, flush=True))
        self._trouble = trouble

    def create(self, request: TuningRequest) -> Job:
        """Raises ApiError 429 for a key with too many unfinished jobs or no device hours left."""
        with self._jobs.lock:
            self._check_hours(request.owner)
            most = self._service.max_queued_per_key
            if sum(not entry.status.state.is_final for entry in self._jobs.of(request.owner)) >= most:
                message = f"this key has {most} unfinished jobs, as many as one may have; wait for one, or cancel one"
                raise ApiError(429, message, code="rate_limit_exceeded")
            entry = self._jobs.add(request)
        self._wake.set()
        return self._view(entry)

    def job(self, id: str, owner: str) -> Job | None:
        """None where there is no such job, or it is another owner's."""
        entry = self._jobs.find(id, owner)
        return None if entry is None else self._view(entry)

    def jobs(self, owner: str) -> list[Job]:
        """The newest first."""
        with self._jobs.lock:
            places = self._scheduling.places()
            return [_job(entry, places) for entry in reversed(self._jobs.of(owner))]

    def cancel(self, id: str, owner: str) -> Job | None:
        """None as `job`. Raises ApiError 400 for a job that has ended."""
        with self._jobs.lock:
            entry = self._jobs.find(id, owner)
            if entry is None:
                return None
            if not self._jobs.change(entry, UNFINISHED, State.cancelled, wanted=Wanted.cancel, note=None):
                raise _not_now(entry, "cancelled")
        self._wake.set()
        return self._view(entry)

    def pause(self, id: str, owner: str) -> Job | None:
        """Raises ApiError 400 for one that has ended or is paused."""
        with self._jobs.lock:
            entry = self._jobs.find(id, owner)
            if entry is None:
                return None
            status = entry.status
            if status.state.is_final or (status.state is State.paused and status.wanted is not Wanted.run):
                raise _not_now(entry, "paused")
            self._jobs.change(entry, UNFINISHED, State.paused, wanted=Wanted.pause, note=None)
        self._wake.set()
        return self._view(entry)

    def resume(self, id: str, owner: str) -> Job | None:
        """Raises ApiError 400 for one that isn't paused, 429 where its key has no device hours left."""
        with self._jobs.lock:
            entry = self._jobs.find(id, owner)
            if entry is None:
                return None
            status = entry.status
            if status.state is not State.paused or status.wanted is Wanted.run:
                raise _not_now(entry, "resumed")
            self._check_hours(owner)
            after = State.queued if status.command else State.validating_files
            state = State.paused if status.is_submitted else after
            self._jobs.change(entry, (State.paused,), state, wanted=Wanted.run, note=None)
        self._wake.set()
        return self._view(entry)

    def events(self, id: str, owner: str) -> Sequence[Event] | None:
        """All so far, the oldest first; None as `job`."""
        entry = self._jobs.find(id, owner)
        return None if entry is None else self._jobs.events(entry)

    def device_hours(self, owner: str) -> float:
        """What an owner's jobs have taken so far."""
        return self._jobs.device_hours(owner)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.clear()
            self.step()
            self._wake.wait(self._service.poll_seconds)

    def _check_hours(self, owner: str) -> None:
        if self._scheduling.is_spent(owner):
            hours = self._service.device_hours_per_key
            raise ApiError(429, f"the {hours:g} device hours of this key are used up", code="insufficient_quota")

    def _view(self, entry: Entry) -> Job:
        with self._jobs.lock:
            has_place = entry.is_waiting or entry.is_resuming
            return _job(entry, self._scheduling.places() if has_place else {})


def _job(entry: Entry, places: dict[str, int]) -> Job:
    """As its owner sees it: a job that is resumed is queued, even while its former attempt is ending."""
    status = replace(entry.status, state=State.queued) if entry.is_resuming else entry.status
    return Job(entry.request, status, places.get(entry.request.id))


def _printed(write: Callable[[], None]) -> None:
    """Print where that can be done: jobs move on while the log's disk is full, or its terminal is gone."""
    with contextlib.suppress(OSError):
        write()


def _not_now(entry: Entry, done: str) -> ApiError:
    message = f"{entry.request.id} is {entry.status.state.value} and can't be {done}"
    return invalid(message, code="invalid_job_state")
