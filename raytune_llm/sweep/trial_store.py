"""A sweep's trials as files of its run, which outlive its driver.

    trials/ID/trial.json    what the trial is: written before it starts, never changed
    trials/ID/ended.json    why it ended; a trial without it is unfinished, and resumes from its newest checkpoint

The folder also holds its checkpoints and logs. Only a sweep's driver writes these two files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage

TRIAL, ENDED = "trial.json", "ended.json"


class Origin(Enum):
    """Who asked for a trial."""

    first = "first"
    """The user: a point of sweep.first."""
    warm_start = "warm_start"
    """The winner of an earlier sweep."""
    search = "search"
    clone = "clone"
    """A command, from another trial."""
    labels = "labels"
    """The winner's recipe on a part of the records."""
    confirm = "confirm"
    """A configuration among the first, with another seed."""

    @property
    def is_apart(self) -> bool:
        """Whether its trials follow the sweep, whose place among the others they don't take."""
        return self in (Origin.labels, Origin.confirm)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What a trial is."""

    id: str
    values: dict[str, Any]
    """Its point of the space, by dotted key."""
    origin: Origin
    parent: str | None = None
    """The trial that it was cloned from."""
    command: str | None = None
    """The command that asked for it; it makes one trial, however often it is read."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trial ended."""

    why: str
    """As Outcome.ended."""
    checkpoint: str | None
    """Name of its last checkpoint's folder."""


@dataclass
class TrialStore:
    """The trials of one run."""

    run_dir: str
    """Path or URI."""
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """By id, in the order in which they were made."""
    endings: dict[str, Ending] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._storage = open_storage(f"{self.run_dir}/trials")

    @classmethod
    def read(cls, run_dir: str) -> TrialStore:
        """What the files of a run say; no trials where there are none."""
        store = cls(run_dir)
        storage = store._storage
        for id in sorted(storage.folders(""), key=lambda id: (len(id), id)):
            if storage.exists(f"{id}/{TRIAL}"):
                content = json.loads(storage.read(f"{id}/{TRIAL}"))
                store.records[id] = TrialRecord(**content | {"origin": Origin(content["origin"])})
                if storage.exists(f"{id}/{ENDED}"):
                    store.endings[id] = Ending(**json.loads(storage.read(f"{id}/{ENDED}")))
        return store

    @property
    def next_id(self) -> str:
        """Of the next trial: t0001, t0002 … Wide enough to sort."""
        last = next(reversed(self.records), "t0")
        return f"t{1 + int(last[1:]):04d}"

    def of_command(self, command: str) -> TrialRecord | None:
        """The trial that a command has made."""
        return next((record for record in self.records.values() if record.command == command), None)

    def create(
        self,
        values: Mapping[str, Any],
        origin: Origin,
        *,
        parent: str | None = None,
        command: str | None = None,
    ) -> TrialRecord:
        """A new trial, on disk when this returns."""
        record = TrialRecord(id=self.next_id, values=dict(values), origin=origin, parent=parent, command=command)
        content = asdict(record) | {"origin": origin.value}
        self._storage.write(f"{record.id}/{TRIAL}", to_json(content, indent=2).encode())
        self.records[record.id] = record
        return record

    def end(self, id: str, ending: Ending) -> None:
        """Note that a trial has ended."""
        self._storage.write(f"{id}/{ENDED}", to_json(asdict(ending)).encode())
        self.endings[id] = ending

    def reopen(self, id: str) -> None:
        """Have a trial that has ended continue."""
        self._storage.delete(f"{id}/{ENDED}")
        del self.endings[id]
