"""metrics.jsonl in the run's folder: one JSON object a line, {"step", "time", metrics…}; and summary.json when the
run ends.

`time` is in seconds since the epoch. NaN and ±Inf are written as the strings "NaN", "Infinity", "-Infinity": valid
JSON that float() reads. When a run resumes from step n, lines of later steps are dropped (they are logged again); from
step 0, all are. Local lines are flushed to the file when log() returns. An object store can't append: there the whole
file is uploaded again, at most every few seconds and at the end, so a killed run may lose its last lines.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raytune_llm.errors import InputError
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import Storage, is_local, open_storage
from raytune_llm.training.tracking.base import Line, Run, RunInfo, Value

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
PUT_SECONDS = 5.0
"""Shortest time between two uploads of metrics.jsonl to an object store."""


@dataclass(frozen=True)
class JSONL:
    """The tracker that is always on."""

    def start(self, info: RunInfo) -> Run:
        storage = open_storage(info.directory)
        lines = kept_lines(storage, info.from_step)
        storage.write(METRICS, "".join(lines).encode())
        return LocalLines(storage) if is_local(info.directory) else RemoteLines(storage, lines)


def kept_lines(storage: Storage, from_step: float) -> list[str]:
    """The lines of steps up to from_step, newlines included. Raises InputError for a damaged line that isn't the
    last."""
    if from_step == 0 or not storage.exists(METRICS):
        return []
    lines = storage.read(METRICS).decode(errors="replace").splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise InputError(
                f"{storage.root}/{METRICS}:{number} is not a line of metrics ({error}); repair or remove it"
            ) from error
        if step <= from_step and line.endswith("\n"):
            kept.append(line)
    return kept


def read_lines(directory: str, *, up_to: float = math.inf) -> tuple[Line, ...]:
    """What metrics.jsonl of a run's folder has of steps up to one; nothing where there is no file. Raises InputError as
    kept_lines."""
    found = [json.loads(line) for line in kept_lines(open_storage(directory), up_to)]
    return tuple(
        Line(
            step=entry.pop("step"),
            seconds=float(entry.pop("time")),
            metrics={name: float(value) for name, value in entry.items()},
        )
        for entry in found
    )


def line_of(step: int, metrics: Mapping[str, float]) -> str:
    """One line. Raises ValueError for a metric with the name of one of the line's own keys."""
    if taken := {"step", "time"} & metrics.keys():
        raise ValueError(f"metrics can't be named {sorted(taken)}: each line has these keys of its own")
    numbers = {name: float(value) for name, value in metrics.items()}
    return to_json({"step": step, "time": round(time.time(), 3), **numbers}) + "\n"


class LocalLines:
    """Appends to a local file, flushing each line."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._file = Path(storage.root, METRICS).open("a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(line_of(step, metrics))
        self._file.flush()

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        self._file.close()
        write_summary(self._storage, summary, failed)


class RemoteLines:
    """Holds all lines and uploads them as one object."""

    def __init__(self, storage: Storage, lines: list[str]) -> None:
        self._storage = storage
        self._lines = lines
        self._put_at = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._lines.append(line_of(step, metrics))
        if time.monotonic() - self._put_at >= PUT_SECONDS:
            self._put()

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        self._put()
        write_summary(self._storage, summary, failed)

    def _put(self) -> None:
        self._storage.write(METRICS, "".join(self._lines).encode())
        self._put_at = time.monotonic()


def write_summary(storage: Storage, summary: Mapping[str, Value], failed: bool) -> None:
    numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, str)}
    texts = {name: value for name, value in summary.items() if isinstance(value, str)}
    storage.write(SUMMARY, to_json({"failed": failed, **texts, "metrics": numbers}, indent=2).encode())
