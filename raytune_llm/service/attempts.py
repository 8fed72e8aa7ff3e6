"""A job's attempts: Ray jobs that are submitted, followed, stopped, and read when they end.

An attempt is counted in the job's status before it is submitted under its number, and Ray takes a number once. So
whoever finds the status, at whatever moment the one before was killed, submits again and starts nothing twice.
"""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from raytune_llm.service.job_table import Entry, JobTable
from raytune_llm.service.messages import for_owner, last_error
from raytune_llm.service.records import JobError, State, Wanted, submission_id
from raytune_llm.service.results import result_of, write_files
from raytune_llm.service.run_files import RunFiles
from raytune_llm.service.runner import Runner, RunState, Seen
from raytune_llm.service.validation import INPUT_ERROR

OpenRun = Callable[[str, str, str], RunFiles]
"""The files of a run, by home, registry name and run."""
FOLLOW_SECONDS = 5.0
"""How often a running job's metrics are read."""
STOP_SECONDS = 10.0
"""How often an attempt is asked to end."""
UNKNOWN_SECONDS = 60.0
"""How long a submission that wasn't answered may still arrive."""
RESULT_SECONDS = 30.0
"""How long a result may take to be seen through a shared file system."""
MOST_LOST = 3
"""Attempts of a job that may be lost with a node or killed: as many are made again."""
EXIT = re.compile(r"entrypoint command failed with exit code (-?\d+)")
KILLED = 128
"""Exit statuses from here on, and negative ones, are those of a command that a signal ended."""
STEPS = re.compile(r"tuning\.steps=(\d+)")
ACTIVE, UNWANTED = (State.queued, State.running), (State.paused, State.cancelled)


class Attempts:
    """The present attempts of all jobs."""

    def __init__(self, jobs: JobTable, runner: Runner, open_run: OpenRun) -> None:
        self._jobs, self._runner, self._open_run = jobs, runner, open_run
        self._last: dict[tuple[str, str], float] = {}
        """When something was last done for an attempt, Unix time."""

    def begin(self, entry: Entry) -> None:
        """Make a queued job's next attempt and submit it. Raises ConnectionError; the attempt stands all the same."""
        attempt = entry.status.attempt + 1
        if self._jobs.change(entry, (State.queued,), attempt=attempt, is_submitted=True, note=None, counted=None):
            self._submit(entry)

    def look_after(self, entry: Entry, devices: float, num_running: int) -> None:
        """Do what the present attempt needs. devices: of the cluster, shared by num_running attempts. Raises OSError
        where something can't be reached or written: the next call tries again."""
        if entry.status.state is State.queued:
            self._submit(entry)
            return
        seen = self._runner.seen(_id(entry))
        if seen is None:
            self._read(entry, lambda: self._unknown(entry))
            return
        now = self._jobs.now()
        self._jobs.count(entry, until=min(now, seen.ended or now), devices=devices, num_running=num_running)
        if seen.state.is_final:
            self._read(entry, lambda: self._end(entry, seen))
        elif entry.status.state in UNWANTED:
            if self._is_due(entry, "stop", STOP_SECONDS):
                self._runner.stop(_id(entry))
        elif self._is_due(entry, "follow", FOLLOW_SECONDS):
            self._follow(entry)

    def _submit(self, entry: Entry) -> None:
        status, request = entry.status, entry.request
        if status.state in UNWANTED:
            return
        metadata = {"job": request.id, "owner": request.owner, "command": shlex.join(status.command)}
        self._is_due(entry, "submit", 0)
        try:
            self._runner.submit(_id(entry), status.command, metadata)
        except RuntimeError as error:
            self._refused(entry, error)
            return
        self._jobs.change(entry, (State.queued,), State.running, counted=self._jobs.now())

    def _refused(self, entry: Entry, error: RuntimeError) -> None:
        """The cluster doesn't take the command."""
        print(f"! {entry.request.id}: {error}", flush=True)
        error_ = JobError(code="server_error", message="the cluster did not take the job", param=None)
        self._jobs.change(entry, ACTIVE, State.failed, error=error_, **_NOT_SUBMITTED)

    def _unknown(self, entry: Entry) -> None:
        """The cluster has never heard of the attempt, or has lost it."""
        run = self._run(entry)
        if entry.status.state is not State.cancelled and run.outcome() is not None:
            self._succeed(entry, run)
        elif entry.status.state is State.running:
            self._submit_again(entry)
        elif self._jobs.now() - self._last.get((_id(entry), "submit"), 0) >= UNKNOWN_SECONDS:
            self._put_down(entry)

    def _submit_again(self, entry: Entry) -> None:
        """The cluster has lost a running attempt."""
        lost = entry.status.lost + 1
        if lost > MOST_LOST:
            error = JobError(
                code="server_error", message="the cluster was lost each time that it ran the job", param=None
            )
            self._jobs.change(entry, (State.running,), State.failed, error=error, **_NOT_SUBMITTED)
            return
        self._jobs.change(entry, (State.running,), counted=self._jobs.now(), lost=lost)
        self._submit(entry)

    def _end(self, entry: Entry, seen: Seen) -> None:
        run = self._run(entry)
        if entry.status.state is State.cancelled:
            self._put_down(entry)
        elif run.outcome() is not None:
            self._succeed(entry, run)
        elif entry.status.state is State.paused:
            self._put_down(entry)
        elif seen.state is RunState.stopped:
            note = "its Ray job was stopped on the cluster"
            self._jobs.change(
                entry, (State.running,), State.cancelled, note=note, wanted=Wanted.cancel, **_NOT_SUBMITTED
            )
        elif seen.state is RunState.failed or self._waited(entry, "result", RESULT_SECONDS):
            self._failed(entry, seen)

    def _put_down(self, entry: Entry) -> None:
        """An attempt that isn't wanted has ended; its job is queued again where its owner has resumed it."""
        with self._jobs.lock:
            is_resumed = entry.status.state is State.paused and entry.status.wanted is Wanted.run
            self._jobs.change(entry, UNWANTED, State.queued if is_resumed else None, **_NOT_SUBMITTED)

    def _read(self, entry: Entry, read: Callable[[], None]) -> None:
        """Read what an attempt has left; one that can't be read fails its job."""
        try:
            read()
        except OSError:
            raise
        except Exception:  # of files that nobody foresaw: its place mustn't be held for ever
            traceback.print_exc()
            error = JobError(code="server_error", message="the service can't read what the run has left", param=None)
            self._jobs.change(entry, (State.running, State.paused), State.failed, error=error, **_NOT_SUBMITTED)

    def _succeed(self, entry: Entry, run: RunFiles) -> None:
        """The run has a result."""
        outcome, request = run.outcome(), entry.request
        assert outcome is not None
        result, trials = result_of(outcome, entry.status.command), run.trials()
        self._jobs.announce(entry, trials, _steps(entry))
        files = write_files(self._jobs.store, request, run, trials, outcome, self._jobs.now())
        fields: Mapping[str, Any] = {"result": result, "result_files": files, "note": None, "wanted": Wanted.run}
        self._jobs.change(entry, (State.running, State.paused), State.succeeded, **fields, **_NOT_SUBMITTED)

    def _failed(self, entry: Entry, seen: Seen) -> None:
        """The attempt ended without a result."""
        found, status = EXIT.search(seen.message), entry.status
        exit_status = int(found[1]) if found else None
        is_lost = seen.state is RunState.failed and (exit_status is None or not 0 <= exit_status < KILLED)
        if is_lost and status.lost < MOST_LOST:
            self._jobs.change(entry, (State.running,), State.queued, lost=status.lost + 1, **_NOT_SUBMITTED)
            return
        log = self._runner.log(_id(entry)) or seen.message  # which ends with the log's last lines
        self._jobs.store.write_log(entry.request.id, f"attempt-{status.attempt}", log)
        message = last_error(log)
        code = "training_failed" if exit_status == INPUT_ERROR else "server_error"
        if message is None:
            ending = "without a result" if exit_status is None else f"with exit status {exit_status}"
            message = f"the run ended {ending}; its log is kept with the job"
        error = JobError(code=code, message=for_owner(message, entry.request), param=None)
        self._follow(entry)
        self._jobs.change(entry, (State.running,), State.failed, error=error, **_NOT_SUBMITTED)

    def _follow(self, entry: Entry) -> None:
        self._jobs.announce(entry, self._run(entry).trials(), _steps(entry))

    def _run(self, entry: Entry) -> RunFiles:
        return self._open_run(self._jobs.store.home, entry.request.name, entry.request.run)

    def _is_due(self, entry: Entry, what: str, seconds: float) -> bool:
        """Whether something wasn't done for the present attempt for so long; it counts as done now."""
        key, now = (_id(entry), what), self._jobs.now()
        if now - self._last.get(key, float("-inf")) < seconds:
            return False
        self._last[key] = now
        return True

    def _waited(self, entry: Entry, what: str, seconds: float) -> bool:
        """Whether it was first asked so long ago."""
        now = self._jobs.now()
        return now - self._last.setdefault((_id(entry), what), now) >= seconds


_NOT_SUBMITTED: Mapping[str, Any] = {"is_submitted": False, "counted": None}


def _id(entry: Entry) -> str:
    return submission_id(entry.request.id, entry.status.attempt)


def _steps(entry: Entry) -> int | None:
    """The optimizer steps of a trial, where the command fixes them."""
    found = [STEPS.fullmatch(override) for override in entry.status.command]
    return next((int(match[1]) for match in found if match is not None), None)
