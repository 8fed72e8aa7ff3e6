"""What a job's config says about its records."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from raytune_llm.data.reading.sources import Source, sources
from raytune_llm.errors import require
from raytune_llm.stores.locations import LOCATIONS

SPLITS = ("train", "eval", "test")


class OnError(Enum):
    """What becomes of a line that can't be used."""

    stop = "stop"
    """The job is refused."""
    skip = "skip"
    """It is left out, counted, and written to a file with the reason."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The records of a job. A location is a file, folder, pattern, URI or hub data set, or a list of them with weights;
    raytune_llm/data/reading/sources.py has all forms."""

    train: Any = field(metadata=LOCATIONS)
    """Location of the training records, or several with weights: [{path: a.jsonl, weight: 2}, b.csv]; null only where
    nothing is trained."""
    eval: Any = field(metadata=LOCATIONS)
    """Location of the records that stop, rank and select trials; null = a seeded split carved from train."""
    test: Any = field(metadata=LOCATIONS)
    """Location of records that no trial sees, for the final comparison; null = none."""
    eval_size: int
    """Most records of a carved eval set, which also is at most a fifth of train; ≥ 1. Ignored where eval is given."""
    max_tokens: int | None
    """Longest token sequence of a record; ≥ 2, or null for the base's context (at most 2048)."""
    columns: dict[str, str]
    """Names of the files' own keys: data.columns.prompt=question reads `question` as `prompt`."""
    ignore: list[str]
    """Keys of records that are left out wherever they occur, though they mean something: [weight, tools]."""
    on_error: OnError
    """stop: a line that can't be used ends the job with all such lines; skip: it is left out and written to a file with
    the reason."""
    strict: bool
    """Refuse data that have any of the doctor's warnings."""

    def __post_init__(self) -> None:
        require(self.eval_size >= 1, "data.eval_size", self.eval_size, "≥ 1")
        for key, name in self.columns.items():
            require(isinstance(name, str), f"data.columns.{key}", name, "the file's name of a key")
        require(self.max_tokens is None or self.max_tokens >= 2, "data.max_tokens", self.max_tokens, "≥ 2 or null")
        for name in SPLITS:
            weights = [source.weight for source in self.sources(name)]
            allowed = "no weights: every record counts once there"
            require(name == "train" or set(weights) <= {1.0}, f"data.{name}", getattr(self, name), allowed)

    def sources(self, split: str) -> list[Source]:
        """The locations of a split. Raises InputError for a value of another form."""
        return sources(getattr(self, split), f"data.{split}")
