"""The data check of an uploaded file before a job is made of it, and what a job on it is expected to take.

Checks run one at a time as processes of their own; an owner's new check ends its earlier one.
"""

from __future__ import annotations

import json
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raytune_llm.service.api.check_report import findings_of_text, shown
from raytune_llm.service.api.job_requests import METHODS
from raytune_llm.service.check_process import Check as Process
from raytune_llm.service.check_process import CheckProcess, Finished
from raytune_llm.service.config import Service
from raytune_llm.service.planning import DataFacts, Planner
from raytune_llm.service.records import DataRef, StoredFile, TuningRequest, new_id, registry_name
from raytune_llm.service.store import Store
from raytune_llm.serving.api.errors import ApiError, invalid

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 600.0
"""Of one check, without the time that it waits."""
MOST_WAITING = 16
KEPT = 64
"""Checks whose findings are kept."""

LOOK_SECONDS = 0.2
REFUSED = 2
"""Exit status of a command whose input can't be used."""
REPLACED = "error: a later check of yours has replaced this one"


class CheckRequest(BaseModel):
    """A file to check, as training data of a method on a base."""

    model_config = ConfigDict(extra="forbid")
    file: str = Field(max_length=64)
    validation_file: str | None = Field(default=None, max_length=64)
    model: str = Field(max_length=128)
    method: str = Field(max_length=32)


class EstimateRequest(BaseModel):
    """Hyperparameters as a job takes them."""

    model_config = ConfigDict(extra="forbid")
    hyperparameters: dict[str, int | float | str] = Field(default_factory=dict, max_length=16)


@dataclass(eq=False)
class Check:
    """A check and what it found."""

    request: TuningRequest
    files: Mapping[str, StoredFile]
    """By split."""
    state: str = "waiting"
    """waiting, running, done or failed."""
    report: dict[str, Any] | None = None
    text: str | None = None
    """What was printed where there is no report."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class DataChecks:
    """All owners' checks. Its methods may be called from any thread."""

    def __init__(
        self,
        store: Store,
        service: Service,
        planner: Planner,
        *,
        has_gpu: Callable[[], bool],
        start_process: Callable[[Sequence[str]], Process] | None = None,
    ) -> None:
        self._store, self._service, self._planner = store, service, planner
        self._has_gpu, self._start_process = has_gpu, start_process or self._process
        self._checks: dict[str, Check] = {}
        self._waiting: queue.Queue[Check | None] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def offers(self) -> dict[str, Any]:
        """What a job can be made of."""
        auto = self._service.auto
        return {
            "models": list(self._service.models),
            "methods": list(METHODS),
            "max_file_bytes": self._service.max_file_bytes,
            "auto": {
                "n_epochs": list(auto.n_epochs),
                "batch_size": list(auto.batch_size),
                "learning_rate_multiplier": list(auto.learning_rate_multiplier),
                "adapter_size": list(auto.adapter_size),
            },
        }

    def start(self, wanted: CheckRequest, owner: str) -> dict[str, Any]:
        """Check a file of this owner, after those that wait. Raises ApiError 400 for what isn't there or offered, 429
        for too many waiting."""
        if wanted.method not in METHODS:
            raise invalid(f"method: must be one of {', '.join(METHODS)}", param="method")
        if wanted.model not in self._service.models:
            raise ApiError(404, f"no such model: {wanted.model}", code="model_not_found", param="model")
        train = self._file(wanted.file, "file", owner)
        other = None
        if wanted.validation_file is not None:
            other = self._file(wanted.validation_file, "validation_file", owner)
        request = _request(wanted, train, other, owner)
        check = Check(request, {"train": train} if other is None else {"train": train, "eval": other})
        with self._lock:
            self._end_earlier(owner)
            if sum(known.state == "waiting" for known in self._checks.values()) >= MOST_WAITING:
                raise ApiError(429, "too many checks are waiting; try again later", code="rate_limit_exceeded")
            self._checks[request.id] = check
            self._forget()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="data-checks", daemon=True)
                self._thread.start()
        self._waiting.put(check)
        return self._shown(check)

    def found(self, id: str, owner: str) -> dict[str, Any] | None:
        """A check and its findings so far; None where this owner has no such check."""
        check = self._checks.get(id)
        return None if check is None or check.request.owner != owner else self._shown(check)

    def estimate(self, id: str, wanted: EstimateRequest, owner: str) -> dict[str, Any] | None:
        """What a job on a checked file is expected to take. Raises ApiError 400 for values that no job takes, 409
        before the check has ended."""
        check = self._checks.get(id)
        if check is None or check.request.owner != owner:
            return None
        facts = None if check.report is None else DataFacts.from_report(check.report)
        if facts is None:
            raise ApiError(409, "nothing is known of this file's tokens", code="no_report")
        request = replace(check.request, hyperparameters=wanted.hyperparameters)
        return asdict(self._planner.plan(request, facts, has_gpu=self._has_gpu()).estimate)

    def close(self) -> None:
        """End what runs and waits."""
        with self._lock:
            for check in self._checks.values():
                check.cancelled.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _file(self, id: str, param: str, owner: str) -> StoredFile:
        file = self._store.file(id)
        if file is None or file.owner != owner:
            raise ApiError(404, f"no such file: {id}", code="not_found", param=param)
        return file

    def _end_earlier(self, owner: str) -> None:
        for check in self._checks.values():
            if check.request.owner == owner and check.state in ("waiting", "running"):
                check.cancelled.set()
                if check.state == "waiting":
                    check.text, check.state = REPLACED, "done"

    def _forget(self) -> None:
        """Keep the newest checks, and those under way."""
        ended = [id for id, check in self._checks.items() if check.state in ("done", "failed")]
        for id in ended[: max(0, len(self._checks) - KEPT)]:
            del self._checks[id]

    def _work(self) -> None:
        while (check := self._waiting.get()) is not None:
            with self._lock:
                if check.cancelled.is_set():
                    check.text, check.state = REPLACED, "done"
                    continue
                check.state = "running"
            try:
                self._examine(check)
                check.state = "done"
            except Exception:  # of a report that nobody foresaw: the checks behind it mustn't wait for ever
                logger.exception("the check of %s failed", check.request.training.name)
                check.text, check.state = "the check failed; the service's log has the cause", "failed"

    def _process(self, command: Sequence[str]) -> Process:
        """On this machine, without the clients' keys."""
        return CheckProcess(command, hidden=[self._service.api_key_env] if self._service.api_key_env else ())

    def _examine(self, check: Check) -> None:
        """Run the command and keep what it wrote, or printed."""
        with tempfile.TemporaryDirectory(prefix="raytune-llm-check-") as folder:
            process = self._start_process(self._planner.check_command(check.request, folder))
            try:
                ended = _wait(process, check.cancelled)
            finally:
                process.kill()
            report = Path(folder) / "report.json"
            if report.exists():
                check.report = json.loads(report.read_bytes())
            elif ended.exit_status != REFUSED:
                raise RuntimeError(f"exit status {ended.exit_status}: {ended.output[-2000:]}")
            check.text = ended.output

    def _shown(self, check: Check) -> dict[str, Any]:
        """For its owner."""
        found: dict[str, Any] = {"id": check.request.id, "state": check.state, "report": None}
        if check.state == "failed":
            return {**found, "error": check.text}
        if check.state == "done" and check.report is not None:
            return {**found, "report": shown(check.report, check.files)}
        if check.state == "done":
            return {**found, "report": findings_of_text(check.text or "", check.files)}
        return found


def _wait(process: Process, cancelled: threading.Event) -> Finished:
    """Until it ends, or has to be ended."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while (found := process.poll()) is None:
        if cancelled.wait(LOOK_SECONDS):
            return Finished(REFUSED, REPLACED)
        if time.monotonic() > end:
            text = f"error: the check takes longer than {TIMEOUT_SECONDS:.0f} seconds; a job checks without this limit"
            return Finished(REFUSED, text)
    return found


def _request(wanted: CheckRequest, train: StoredFile, other: StoredFile | None, owner: str) -> TuningRequest:
    return TuningRequest(
        id=new_id("check"),
        owner=owner,
        created=int(time.time()),
        api="openai",
        method=METHODS[wanted.method],
        model=wanted.model,
        base=wanted.model,
        init_adapter=None,
        training=DataRef(name=train.id, location=train.location),
        validation=None if other is None else DataRef(name=other.id, location=other.location),
        hyperparameters={},
        name=registry_name(owner, None, wanted.model),
        suffix=None,
        seed=0,
        metadata={},
        wandb=None,
    )
