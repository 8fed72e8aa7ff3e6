"""How commands run on the cluster: each is a Ray job.

Ray's job server is asked by its REST API (docs.ray.io, "Ray Jobs REST API"): JobSubmissionClient sends the same
requests, but waits for ever for a server that hangs, and takes its token from this process's environment alone.
"""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPException
from typing import Any, Protocol

from raytune_llm.serving.deploy.config import is_loopback

TIMEOUT_SECONDS = 30.0
"""How long an answer may take; a head that has just started takes some for a first submission."""
MOST_LOG_BYTES = 16 << 20
STATES = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}
"""Ray's names, and ours."""
NODES = "/api/v0/nodes?detail=true&limit=10000"
"""What `ray list nodes` asks."""


class RunState(Enum):
    """How far an attempt is; the values are Ray's, in small letters."""

    pending = "pending"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    stopped = "stopped"

    @property
    def is_final(self) -> bool:
        return self in (RunState.succeeded, RunState.failed, RunState.stopped)


@dataclass(frozen=True)
class Seen:
    """An attempt as the cluster knows it."""

    state: RunState
    message: str
    """Why it failed, as the cluster says."""
    ended: float | None = None
    """Unix time of its end, where the cluster knows it."""


class Runner(Protocol):
    """A cluster that runs commands. Raises ConnectionError while it can't be reached."""

    def submit(self, submission_id: str, command: Sequence[str], metadata: Mapping[str, str]) -> None:
        """Start a command; nothing where that id was submitted before. Raises RuntimeError for one that the cluster
        will never take."""
        ...

    def seen(self, submission_id: str) -> Seen | None:
        """None when the cluster has never heard of it, or has lost it."""
        ...

    def stop(self, submission_id: str) -> None:
        """Ask for its end; `seen` tells when it has ended."""
        ...

    def log(self, submission_id: str) -> str:
        """What it printed; '' when that is lost, or too long."""
        ...

    def devices(self) -> float:
        """GPUs of the cluster; 1 where it has none."""
        ...

    def has_gpu(self) -> bool:
        """Whether jobs compute on GPUs."""
        ...


class RayRunner:
    """The job server of a Ray cluster."""

    def __init__(self, address: str, token: str | None = None, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """address: http://HOST:PORT of the dashboard; token: what it asks for, None where it asks for none."""
        self._address, self._timeout = address.rstrip("/"), timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        is_near = is_loopback(urllib.parse.urlsplit(address).hostname or "")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_near else []))

    def submit(self, submission_id: str, command: Sequence[str], metadata: Mapping[str, str]) -> None:
        body = {"entrypoint": shlex.join(command), "submission_id": submission_id, "metadata": dict(metadata)}
        status, answer = self._ask("POST", "/api/jobs/", body)
        if status == 200 or self.seen(submission_id) is not None:
            return
        failure = f"Ray's job server doesn't take {submission_id}: status {status}: {answer[:500]}"
        raise RuntimeError(failure) if status < 500 else ConnectionError(failure)

    def seen(self, submission_id: str) -> Seen | None:
        status, answer = self._ask("GET", f"/api/jobs/{submission_id}")
        if status == 404:
            return None
        found = self._read(status, answer)
        ended = found.get("end_time")
        state = RunState(found["status"].lower())
        return Seen(state, found.get("message") or "", ended / 1000 if ended and state.is_final else None)

    def stop(self, submission_id: str) -> None:
        status, answer = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if status != 404:
            self._read(status, answer)

    def log(self, submission_id: str) -> str:
        status, answer = self._ask("GET", f"/api/jobs/{submission_id}/logs")
        try:
            return str(self._read(status, answer).get("logs") or "") if status == 200 else ""
        except ValueError:  # longer than MOST_LOG_BYTES, and so cut off
            return ""

    def devices(self) -> float:
        return self._gpus() or 1.0

    def has_gpu(self) -> bool:
        return self._gpus() > 0

    def _gpus(self) -> float:
        nodes = self._read(*self._ask("GET", NODES))["data"]["result"]["result"]
        alive = [node for node in nodes if node["state"] == "ALIVE"]
        return sum(float((node.get("resources_total") or {}).get("GPU", 0)) for node in alive)

    def _read(self, status: int, answer: str) -> Mapping[str, Any]:
        """An answer's content. Raises ConnectionError for one that is no success."""
        if status != 200:
            raise ConnectionError(f"Ray's job server at {self._address} answers with status {status}: {answer[:500]}")
        return json.loads(answer)

    def _ask(self, method: str, path: str, body: object | None = None) -> tuple[int, str]:
        """Status and text of the answer. Raises ConnectionError without one, or where the token is refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}{path}", data=data, headers=self._headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return answer.status, answer.read(MOST_LOG_BYTES).decode(errors="replace")
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ConnectionError(f"Ray's job server at {self._address} refuses the service's token") from error
            return error.code, error.read(MOST_LOG_BYTES).decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise ConnectionError(f"Ray's job server at {self._address} can't be reached: {error}") from error
