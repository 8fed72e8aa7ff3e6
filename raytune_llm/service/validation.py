"""A job's files are checked, then its command is fixed: from validating_files to queued, or failed."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raytune_llm.service.check_process import Check, Finished
from raytune_llm.service.job_table import Entry, JobTable
from raytune_llm.service.messages import for_owner, last_error, param_of
from raytune_llm.service.planning import DataFacts, Planner
from raytune_llm.service.queue import Limits, next_job
from raytune_llm.service.records import JobError, State
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.stores.storage import open_storage

INPUT_ERROR = 2
"""Exit status of a command for errors caused by user input."""
REPORT = "report.json"
ONE = Limits(in_all=1, per_owner=None)
VALIDATING = (State.validating_files,)


class Validation:
    """Checks the files of new jobs, one job at a time."""

    def __init__(
        self,
        jobs: JobTable,
        planner: Planner,
        start_check: Callable[[Sequence[str]], Check],
        has_gpu: Callable[[], bool],
        timeout_seconds: float,
    ) -> None:
        self._jobs, self._planner, self._start_check, self._has_gpu = jobs, planner, start_check, has_gpu
        self._timeout_seconds, self._began = timeout_seconds, 0.0
        self._current: tuple[Entry, Check] | None = None
        self._last_starts: dict[str, float] = {}

    def step(self) -> None:
        """Look after the present check, or start the next. Raises OSError where something can't be reached or written;
        the next step tries again."""
        if self._current is not None:
            entry, check = self._current
            if entry.status.state not in VALIDATING:
                self.close()
            elif (finished := check.poll()) is not None:
                self._end(entry, finished)
                self.close()
            elif self._jobs.now() - self._began > self._timeout_seconds:
                message = f"the check of the files took more than {self._timeout_seconds:g} seconds"
                self._fail(entry, JobError(code="invalid_training_file", message=message, param="training_file"))
                self.close()
        if self._current is None:
            self._start_next()

    def close(self) -> None:
        """End the present check; its job is checked again by whoever starts next."""
        if self._current is not None:
            self._current[1].kill()
            self._current = None

    def _start_next(self) -> None:
        entries = {e.request.id: e for e in self._jobs.all() if e.status.state in VALIDATING}
        found = next_job([entry.waiting for entry in entries.values()], {}, self._last_starts, ONE)
        if found is None:
            return
        entry = entries[found.id]
        try:
            command = self._planner.check_command(entry.request, self._jobs.store.check_folder(found.id))
        except ApiError as error:
            self._fail(entry, JobError(code=error.code or "invalid_value", message=error.message, param=error.param))
            return
        self._current = entry, self._start_check(command)
        self._began = self._last_starts[found.owner] = self._jobs.now()

    def _end(self, entry: Entry, finished: Finished) -> None:
        try:
            self._read(entry, finished)
        except Exception as error:  # of a report or plan that nobody foresaw: the jobs behind it mustn't wait for ever
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            traceback.print_exc()
            self._fail(entry, JobError(code="server_error", message="the service failed on this job", param=None))

    def _read(self, entry: Entry, finished: Finished) -> None:
        request = entry.request
        storage = open_storage(self._jobs.store.check_folder(request.id))
        if finished.exit_status == 0:
            self._plan(entry, json.loads(storage.read(REPORT)))
            return
        self._jobs.store.write_log(request.id, "check", finished.output)
        if finished.exit_status == INPUT_ERROR:
            found = problems(storage.read(REPORT)) if storage.exists(REPORT) else last_error(finished.output)
            message = for_owner(found or "the files can't be used", request)
            self._fail(entry, JobError(code="invalid_training_file", message=message, param=param_of(message, request)))
            return
        message = f"the check of the files ended with status {finished.exit_status}; its log is kept with the job"
        self._fail(entry, JobError(code="server_error", message=message, param=None))

    def _plan(self, entry: Entry, report: Mapping[str, Any]) -> None:
        try:
            planned = self._planner.plan(entry.request, DataFacts.from_report(report), has_gpu=self._has_gpu())
        except ApiError as error:
            self._fail(entry, JobError(code=error.code or "invalid_value", message=error.message, param=error.param))
            return
        fields = {"command": planned.command, "estimate": planned.estimate, "plan_notes": planned.notes}
        self._jobs.change(entry, VALIDATING, State.queued, **fields)

    def _fail(self, entry: Entry, error: JobError) -> None:
        self._jobs.change(entry, VALIDATING, State.failed, error=error)


def problems(report: bytes) -> str | None:
    """Why a check's report refuses the data; None where it doesn't."""
    findings = json.loads(report)["findings"]
    return "; ".join(found["text"] for found in findings if found["severity"] == "problem") or None
