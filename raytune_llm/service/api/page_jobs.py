"""Jobs as the page shows them: summaries, and one job with its curves, leaderboard, verdict and files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import PurePosixPath
from shlex import join
from typing import Any

from raytune_llm.service.api.check_report import renamed, shown
from raytune_llm.service.api.curves import best_of, best_of_result, curves, falling, main_metric, progress
from raytune_llm.service.config import Service
from raytune_llm.service.controller import Controller, Job
from raytune_llm.service.records import DataRef, State, StoredFile, TuningRequest
from raytune_llm.service.run_files import RunFiles, Trial
from raytune_llm.service.store import Store
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage

FILES = {
    "report.html": "text/html",
    "report.json": "application/json",
    "run-report.html": "text/html",
    "evaluation-eval.md": "text/markdown",
    "leaderboard.csv": "text/csv",
}
"""The files of a job that the page links to, with their media types; the first two are the data check's."""
CHECKED = ("report.html", "report.json")
OF_RUN = {"run-report.html": "report.html"}
"""Files of a run's folder that have another name here."""
SHOWN_JOBS = 50
"""Of one answer to the list of jobs."""
SHOWN_ROWS = 200
"""Of a leaderboard."""
FRESH_SECONDS = 1.5
"""For how long a running job's curves are read once for all who look."""
KEPT_RUNS = 8

OpenRun = Callable[[str, str, str], RunFiles]


class JobPages:
    """Reads the controller and the runs' folders. Its methods may be called from any thread."""

    def __init__(self, controller: Controller, store: Store, service: Service, *, open_run: OpenRun = RunFiles) -> None:
        self._controller, self._store, self._service, self._open_run = controller, store, service, open_run
        self._trials: dict[str, tuple[float, State, list[Trial]]] = {}
        """When they were read, in which state of the job; by job."""

    def usage(self, owner: str) -> dict[str, Any]:
        """What an owner's jobs have taken, and the limits."""
        states = [job.status.state for job in self._controller.jobs(owner)]
        return {
            "device_hours": self._controller.device_hours(owner),
            "device_hours_limit": self._service.device_hours_per_key,
            "running": states.count(State.running),
            "waiting": states.count(State.queued) + states.count(State.validating_files),
            "max_jobs": self._service.max_jobs_per_key or self._service.max_jobs,
        }

    def summaries(self, owner: str, after: str | None) -> dict[str, Any]:
        """The owner's jobs, the newest first, from behind a job on."""
        jobs = self._controller.jobs(owner)
        first = next((place + 1 for place, job in enumerate(jobs) if job.request.id == after), 0)
        shown = jobs[first : first + SHOWN_JOBS]
        return {"jobs": [self._summary(job) for job in shown], "has_more": len(jobs) > first + SHOWN_JOBS}

    def detail(self, id: str, owner: str) -> dict[str, Any] | None:
        """All that is known of a job; None where this owner has no such job."""
        job = self._controller.job(id, owner)
        if job is None:
            return None
        request, status = job.request, job.status
        files = self._run(request)
        trials = self._read(job)
        outcome = files.outcome() or {}
        metric = outcome.get("metric") or main_metric(trials)
        return {
            **self._summary(job),
            "api": request.api,
            "hyperparameters": dict(request.hyperparameters),
            "seed": request.seed,
            "metadata": dict(request.metadata),
            "training_file": self._data(request.training),
            "validation_file": None if request.validation is None else self._data(request.validation),
            "changes": [{"state": state, "at": at} for state, at in status.changes],
            "command": join(status.command) if status.command else None,
            "estimate": None if status.estimate is None else asdict(status.estimate),
            "result": None if status.result is None else asdict(status.result),
            "winner": outcome.get("trial"),
            "verdicts": outcome.get("verdicts"),
            "result_files": list(status.result_files),
            "metric": metric,
            "falling": falling(trials),
            "trials": curves(trials),
            "leaderboard": list(files.leaderboard())[:SHOWN_ROWS],
            "files": [name for name in FILES if self._content(request, name) is not None],
        }

    def file(self, id: str, name: str, owner: str) -> tuple[bytes, str] | None:
        """A file of a job and its media type; None where this owner has no such job, or it has no such file."""
        job = self._controller.job(id, owner)
        if job is None or name not in FILES:
            return None
        content = self._content(job.request, name)
        if content is not None and name == "report.json":
            content = to_json(shown(json.loads(content), self._files(job.request))).encode()
        if content is not None and name in ("report.html", "run-report.html"):
            data = [one for one in (job.request.training, job.request.validation) if one is not None]
            content = renamed(content, {one.location: self._data(one)["filename"] for one in data})
        return None if content is None else (content, FILES[name])

    def _summary(self, job: Job) -> dict[str, Any]:
        request, status = job.request, job.status
        trials = self._under_way(job)
        part = progress(trials, status) if status.state is State.running else None
        return {
            "id": request.id,
            "name": request.name,
            "suffix": request.suffix,
            "model": request.model,
            "base": request.base,
            "method": request.method,
            "created": request.created,
            "file": self._data(request.training)["filename"],
            "state": status.state.value,
            "wanted": status.wanted.value,
            "place": job.place,
            "note": status.note,
            "error": None if status.error is None else asdict(status.error),
            "fine_tuned_model": status.result.version if status.result and status.result.is_named else None,
            "progress": part,
            "seconds_left": None if part is None else _seconds_left(part, status.since(State.running)),
            "best": best_of(trials) if status.result is None else best_of_result(status.result),
            "device_hours": status.device_seconds / 3600,
            "estimated_device_hours": None if status.estimate is None else status.estimate.device_hours,
            "ended": status.changes[-1][1] if status.state.is_final and status.changes else None,
        }

    def _run(self, request: TuningRequest) -> RunFiles:
        return self._open_run(self._store.home, request.name, request.run)

    def _read(self, job: Job) -> list[Trial]:
        """A run's trials, read again now and then while it is running."""
        id, state = job.request.id, job.status.state
        known = self._trials.get(id)
        is_fresh = known is not None and (state is not State.running or time.monotonic() - known[0] < FRESH_SECONDS)
        if known is not None and known[1] is state and is_fresh:
            return known[2]
        trials = self._run(job.request).trials()
        self._trials.pop(id, None)
        self._trials[id] = time.monotonic(), state, trials
        for old in list(self._trials)[:-KEPT_RUNS]:
            self._trials.pop(old, None)
        return trials

    def _under_way(self, job: Job) -> list[Trial]:
        """The trials of a run that has begun and not ended; those of others are left alone, being many."""
        return self._read(job) if job.status.state in (State.running, State.paused) else []

    def _data(self, data: DataRef) -> dict[str, Any]:
        """A job's file by its id and the client's name for it."""
        file = self._store.file(data.name)
        name = PurePosixPath(data.name).name if file is None else file.filename
        return {"id": data.name, "filename": name}

    def _files(self, request: TuningRequest) -> dict[str, StoredFile]:
        """A job's files that are uploads, by split."""
        of_splits = {"train": request.training, "eval": request.validation}
        found = {split: None if data is None else self._store.file(data.name) for split, data in of_splits.items()}
        return {split: file for split, file in found.items() if file is not None}

    def _content(self, request: TuningRequest, name: str) -> bytes | None:
        if name not in CHECKED:
            return self._run(request).file(OF_RUN.get(name, name))
        try:
            return open_storage(self._store.check_folder(request.id)).read(name)
        except FileNotFoundError:
            return self._run(request).file(f"data/{name}")


def _seconds_left(part: float, begun: float | None) -> float | None:
    """A guess from how long the part so far took; None while that is too little to guess from."""
    if begun is None or part < 0.03:
        return None
    return (time.time() - begun) * (1 - part) / part
