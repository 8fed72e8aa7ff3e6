"""How far a run is, for whoever looks at it from elsewhere: RUN/control/status.json.

The run's driver keeps it up to date (`reporting`), from a thread of its own, so that a status that isn't renewed shows
that its driver is dead. What the driver knows it gives by `update`, from anywhere in its process.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from raytune_llm.errors import InputError, first_line
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import is_local, open_storage

FILE = "control/status.json"
LOCAL_SECONDS, REMOTE_SECONDS = 2.0, 10.0
"""Shortest time between two writes to a folder, and to an object store."""
RENEWED_SECONDS = 10.0
"""Longest time between two writes, where the storage bears it."""
SILENT_SECONDS, GONE_SECONDS = 60.0, 15.0
"""A status that is older is that of a lost run, by a process of another machine, and by one of this machine that isn't
seen to run."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set for a command that was submitted to Ray's job server."""


class State(Enum):
    """How far a run is."""

    waiting = "waiting"
    """For a tuning slot."""
    checking = "checking"
    running = "running"
    paused = "paused"
    comparing = "comparing"
    ended = "ended"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.ended, State.failed, State.cancelled)


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best report so far."""

    value: float
    """Of the run's metric."""
    trial: str
    step: int


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is; None is what isn't known."""

    command: str
    """train or sweep."""
    name: str
    run: str
    owner: str
    """Who started it."""
    host: str
    pid: int
    process: int | None
    """When the process began, in clock ticks since its machine's start: no later process of this id has the same."""
    submission: str | None = None
    """Id of the Ray job whose entrypoint it is."""
    job_server: str | None = None
    """Of the cluster that it has joined, as http://HOST:PORT."""
    started: float
    """Unix time of the run's first start."""
    updated: float
    """Unix time."""
    state: State
    note: str = ""
    """What it waits for, or the first line of what went wrong."""
    metric: str | None = None
    lower_is_better: bool | None = None
    best: Best | None = None
    num_trials: int | None = None
    """That the run will have in all, as far as it is known."""
    num_ended: int | None = None
    num_running: int | None = None
    num_pending: int | None = None
    steps_done: int | None = None
    """Steps that are no longer to do, those saved by early stopping included."""
    steps_total: int | None = None
    seconds: float | None = None
    """Wall time spent, over all restarts."""
    gpu_hours: float | None = None
    usd: float | None = None
    tokens: int | None = None
    """That trials were trained on."""
    eta_seconds: float | None = None
    """Time left, at most."""

    @property
    def is_of_this_machine(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def process_runs(self) -> bool:
        """Whether its process is seen to run on this machine."""
        return self.is_of_this_machine and self.process is not None and began(self.pid) == self.process

    def is_lost(self, now: float) -> bool:
        """Whether its driver died before the run's end; the same command with run= resumes it."""
        patience = GONE_SECONDS if self.is_of_this_machine else SILENT_SECONDS
        return not self.state.is_final and now - self.updated > patience and not self.process_runs


def read_status(run_dir: str) -> RunStatus | None:
    """The status of a run, a path or URI; None where there is none. Raises InputError for a damaged file."""
    from pydantic import TypeAdapter

    storage = open_storage(run_dir)
    try:
        return TypeAdapter(RunStatus).validate_json(storage.read(FILE))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{storage.root}/{FILE} is damaged; remove it: {first_line(error)}") from error


def write_status(run_dir: str, status: RunStatus) -> None:
    open_storage(run_dir).write(FILE, to_json(status, indent=2).encode())


_current: _Report | None = None


def update(**changes: Any) -> None:
    """Note what has changed: fields of RunStatus. Takes no time and raises nothing; does nothing in a process that
    reports no run."""
    if _current is not None:
        _current.update(changes)


@contextmanager
def reporting(run_dir: str, *, command: str, name: str, run: str) -> Iterator[None]:
    """Keep the status of a run while its driver is inside: from checking to ended, failed or cancelled."""
    global _current
    report = _current = _Report(run_dir, _first_status(run_dir, command=command, name=name, run=run))
    try:
        yield
    except Exception as error:
        if not report.status.state.is_final:
            report.update({"state": State.failed, "note": first_line(error)})
        raise
    except BaseException:  # Ctrl-C, or SIGTERM once Ray has started
        report.update({"state": State.cancelled, "note": "interrupted; the same command with run= resumes it"})
        raise
    else:
        if not report.status.state.is_final:
            report.update({"state": State.ended, "note": "", "eta_seconds": None})
    finally:
        _current = None
        report.close()


class _Report:
    """Writes a status when it has changed, and every few seconds."""

    def __init__(self, run_dir: str, status: RunStatus) -> None:
        self.status = status
        self._run_dir = run_dir
        self._shortest = LOCAL_SECONDS if is_local(run_dir) else REMOTE_SECONDS
        self._changed, self._closed = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._write()
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)
        self._thread.start()

    def update(self, changes: dict[str, Any]) -> None:
        with self._lock:
            self.status = replace(self.status, **changes)
        self._changed.set()

    def close(self) -> None:
        """Write it a last time."""
        self._closed.set()
        self._changed.set()
        self._thread.join()
        self._write()

    def _keep(self) -> None:
        while not self._closed.wait(self._shortest):
            self._changed.wait(RENEWED_SECONDS)
            self._changed.clear()
            self._write()

    def _write(self) -> None:
        """A storage that fails does not end the run: the next write may succeed."""
        with self._lock:
            self.status = replace(self.status, updated=time.time())
        try:
            write_status(self._run_dir, self.status)
        except OSError as error:
            print(f"! the run's status can't be written: {first_line(error)}", flush=True)


def _first_status(run_dir: str, *, command: str, name: str, run: str) -> RunStatus:
    """Of a run that starts, or starts again: what was known of it is kept."""
    job = json.loads(os.environ.get(JOB_CONFIG) or "{}").get("metadata") or {}
    now = time.time()
    status = RunStatus(
        command=command,
        name=name,
        run=run,
        owner=job.get("owner") or user(),
        host=socket.gethostname(),
        pid=os.getpid(),
        process=began(os.getpid()),
        submission=job.get("job_submission_id"),
        started=now,
        updated=now,
        state=State.checking,
    )
    before = read_status(run_dir)
    if before is None:
        return status
    own = ("owner", "host", "pid", "process", "submission", "updated", "state", "note", "job_server", "eta_seconds")
    return replace(before, **{key: getattr(status, key) for key in own})


def user() -> str:
    """Of this process; '?' where the machine has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "?"


def began(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since the machine's start; None where it has ended, or
    where the machine doesn't say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
