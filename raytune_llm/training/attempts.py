"""Where and when a trial was trained: attempts.json in its folder, a line of a sweep's timeline for each start.

Written when a trial begins, resumes or moves to another process. When an attempt ended is known by what it has logged:
metrics.jsonl has the time of every line.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass

from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage

FILE = "attempts.json"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a trial."""

    started: float
    """Unix time."""
    from_step: int
    """Of the checkpoint that it resumed from; 0 without one."""
    host: str
    process: int
    """Its id: trials that share a base share the process."""
    device: str
    """GPU 0, or CPU."""


def note_attempt(directory: str, device: str, *, from_step: int) -> None:
    """Add an attempt that begins now, in this process, to a trial's folder, a path or URI. A trial that begins anew has
    no earlier ones."""
    attempt = Attempt(
        started=round(time.time(), 3),
        from_step=from_step,
        host=socket.gethostname(),
        process=os.getpid(),
        device=device,
    )
    before = read_attempts(directory) if from_step else []
    content = [asdict(one) for one in [*before, attempt]]
    open_storage(directory).write(FILE, to_json(content).encode())


def read_attempts(directory: str) -> list[Attempt]:
    """Of a trial, the first one first; none of a trial that earlier code has trained."""
    storage = open_storage(directory)
    if not storage.exists(FILE):
        return []
    return [Attempt(**content) for content in json.loads(storage.read(FILE))]


def device_here(*, use_gpu: bool) -> str:
    """The device of this Ray process, as people know it."""
    if not use_gpu:
        return "CPU"
    import ray

    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return " ".join(["GPU", ", ".join(map(str, ids))]).strip()
