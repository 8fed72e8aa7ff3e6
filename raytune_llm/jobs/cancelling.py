"""The end of a run from outside, where it carries out no commands: its process, or its Ray job, is asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace

from raytune_llm.errors import InputError
from raytune_llm.jobs.schema import ControlJob
from raytune_llm.sweep.status import RunStatus, State, read_status, write_status

POLL_SECONDS = 0.5


def cancel_process(run_dir: str, status: RunStatus, job: ControlJob) -> str:
    """Ask a run's process to end, wait until it has, and note it in its status; what came of it. Raises InputError for
    a process that can't be reached from here."""
    deadline = time.monotonic() + job.timeout_seconds
    ended = _stop_ray_job(status, job, deadline) if status.submission else _stop_process(status, deadline)
    label = f"{status.name}/{status.run}"
    if not ended:
        return f"{label} has been asked to end, and hasn't ended within {job.timeout_seconds:g} s"
    last = read_status(run_dir)
    if last is not None and not last.state.is_final:  # it had no time to note it
        note = "cancelled; the same command with run= resumes it"
        write_status(run_dir, replace(last, state=State.cancelled, note=note, updated=time.time()))
    return f"{label} is cancelled; the same command with run={status.run} resumes it from its last checkpoint"


def _stop_process(status: RunStatus, deadline: float) -> bool:
    """Whether it has ended in time."""
    if not status.process_runs:
        raise InputError(
            f"{status.name}/{status.run} runs on {status.host} as process {status.pid}, which can't be seen from here; "
            "cancel it there"
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(status.pid, signal.SIGTERM)
    while status.process_runs and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return not status.process_runs


def _stop_ray_job(status: RunStatus, job: ControlJob, deadline: float) -> bool:
    """Whether it has ended in time."""
    from raytune_llm.service import head
    from raytune_llm.service.ray_cluster import users_token
    from raytune_llm.service.runner import RayRunner

    assert status.submission is not None
    address = job.ray_address or status.job_server
    if address is None:
        raise InputError(
            f"{status.name}/{status.run} is Ray job {status.submission} of a cluster whose job server isn't known; "
            "give ray_address=http://HOST:8265"
        )
    own = head.running(job.home)
    is_own = own is not None and own.address == address
    runner = own.runner if own is not None and is_own else RayRunner(address, users_token())
    try:
        runner.stop(status.submission)
        while (found := runner.seen(status.submission)) is not None and not found.state.is_final:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
    except ConnectionError as error:
        raise InputError(f"{error}; ray_address=http://HOST:8265 names another job server") from error
    return True
