"""What a run writes, read back while it is on its way and when it has ended.

    runs/NAME/RUN/trials/ID/metrics.jsonl, trial.json      each trial; of a single run ID is `train`
    runs/NAME/RUN/leaderboard.csv, evaluation-*.md, …      when the trials have ended
    runs/NAME/RUN/result.json                              last of all

Cheap enough to be asked every few seconds: of a local metrics.jsonl only what has grown is read, one of an object store
at most every few seconds. The runs of stages before the job's own have names of their own, and are left out.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from raytune_llm.errors import check_name
from raytune_llm.stores.storage import Storage, is_local, open_storage

METRICS, TRIAL, RESULT, LEADERBOARD = "metrics.jsonl", "trial.json", "result.json", "leaderboard.csv"
FILES = (
    RESULT,
    LEADERBOARD,
    "report.html",
    "data/report.json",
    "data/report.html",
    "data/rejects.jsonl",
    *(f"evaluation-{split}.{kind}" for split in ("eval", "test") for kind in ("md", "json")),
)
"""What `file` gives."""
REMOTE_SECONDS = 5.0
"""Shortest time between two reads of an object: a run uploads its lines no more often."""
KEPT_RUNS = 32
"""Runs whose lines are kept in memory."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A line of a trial's metrics.jsonl."""

    step: int
    time: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of a run so far."""

    id: str
    values: Mapping[str, Any]
    """Its point of the space, by dotted key; empty for a single run."""
    points: Sequence[Point]


class RunFiles:
    """The folder of one run; everything may be missing yet. May be made anew whenever it is needed: what was read is
    kept."""

    def __init__(self, home: str, name: str, run: str) -> None:
        check_name("name", name)
        check_name("run", run)
        self._storage = open_storage(f"{home}/runs/{name}/{run}")

    def trials(self) -> list[Trial]:
        """All trials with what they have reported, sorted by id. A half-written last line is left out."""
        kept = _kept(self._storage.root)
        found = [kept.trial(self._storage, id) for id in self._storage.folders("trials")]
        return [trial for trial in found if trial is not None]

    def outcome(self) -> Mapping[str, Any] | None:
        """result.json, which the command writes when the version is published: {"version", "promoted", "verdicts",
        "contradiction", "trial", "values", "step", "metric", "metrics", and where it is known "trained_tokens"}; None
        before."""
        content = self.file(RESULT)
        if content is None:
            return None
        result = json.loads(content)
        return {**result, "metrics": {name: float(value) for name, value in result["metrics"].items()}}

    def leaderboard(self) -> list[Mapping[str, str]]:
        """The rows of leaderboard.csv, the best first; none before the sweep has ended."""
        content = self.file(LEADERBOARD)
        return [] if content is None else list(csv.DictReader(io.StringIO(content.decode(), newline="")))

    def file(self, name: str) -> bytes | None:
        """data/report.html, evaluation-eval.md, leaderboard.csv …; None when it isn't there, or isn't one of FILES."""
        return _read(self._storage, name) if name in FILES else None


class _Kept:
    """The trials of one run, as far as they have been read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Lines] = {}

    def trial(self, storage: Storage, id: str) -> Trial | None:
        """None for a folder that is no trial's."""
        with self._lock:
            lines = self._lines.get(id) or _Lines(f"trials/{id}")
            if not lines.update(storage):
                return None
            self._lines[id] = lines
            return Trial(id=id, values=lines.values, points=tuple(lines.points))


@lru_cache(maxsize=KEPT_RUNS)
def _kept(folder: str) -> _Kept:
    return _Kept()


class _Lines:
    """The points of a growing metrics.jsonl. A resumed run writes a new file, without the lines that come again."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.values: Mapping[str, Any] = {}
        self.points: list[Point] = []
        self._file: tuple[int, int] | None = None
        """Device and inode."""
        self._size = 0
        """Bytes read, whole lines only."""
        self._read_at = -REMOTE_SECONDS

    def update(self, storage: Storage) -> bool:
        """Read what is new; whether there is such a file."""
        found = self._update_local(Path(storage.root)) if is_local(storage.root) else self._update_remote(storage)
        if found and not self.values:
            content = _read(storage, f"{self._folder}/{TRIAL}")
            self.values = {} if content is None else _object(content).get("values", {})
        return found

    def _update_local(self, root: Path) -> bool:
        try:
            with (root / self._folder / METRICS).open("rb") as file:
                status = os.fstat(file.fileno())
                now = status.st_dev, status.st_ino
                if now != self._file or status.st_size < self._size:
                    self._file, self._size, self.points = now, 0, []
                file.seek(self._size)
                self._add(file.read(status.st_size - self._size))
        except FileNotFoundError:
            return False
        return True

    def _update_remote(self, storage: Storage) -> bool:
        if time.monotonic() - self._read_at < REMOTE_SECONDS:
            return True
        content = _read(storage, f"{self._folder}/{METRICS}")
        if content is None:
            return False
        self._read_at, self._size, self.points = time.monotonic(), 0, []
        self._add(content)
        return True

    def _add(self, content: bytes) -> None:
        """Read the whole lines of what follows."""
        whole = content[: content.rfind(b"\n") + 1]
        self._size += len(whole)
        self.points += [point for point in map(_point, whole.splitlines()) if point is not None]


def _point(line: bytes) -> Point | None:
    """A line; None for one that a lost node has damaged, which a resumed run repairs."""
    found = _object(line)
    try:
        numbers = {name: float(value) for name, value in found.items()}
        point = Point(step=int(numbers.pop("step")), time=numbers.pop("time"), metrics={})
    except (KeyError, TypeError, ValueError):
        return None
    return replace(point, metrics=numbers)


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for what is none, or only a part of it."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read(path)
    except FileNotFoundError:
        return None
