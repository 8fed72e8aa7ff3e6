"""What a job's config says about its records."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from raytune_llm.data.mixture import Mixture
from raytune_llm.data.reading.sources import MOST_PASSES, Source, source_names, sources
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
    guard: Any = field(metadata=LOCATIONS)
    """Location of general prompts by which evaluation.drift is measured: prompts, or records of whose answers nothing
    is read; null = the embedded ones. Keys are those of the dialects: data.columns isn't applied."""
    subset: float
    """Share of the records of train that is trained on: the beginning of one order, drawn with the job's seed, of each
    location's records, so that a smaller share is part of a larger one. > 0 and ≤ 1."""
    weights: dict[str, float]
    """How often an epoch sees the records of each location of train, in place of the weights given there: by the file's
    name without suffixes (or by its place, 0, 1 …, where two are alike); ≥ 0, 0 = not at all. {} where train is one
    location."""
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
        object.__setattr__(self, "weights", self._all_weights())
        require(0 < self.subset <= 1, "data.subset", self.subset, "> 0 and ≤ 1")
        require(self.eval_size >= 1, "data.eval_size", self.eval_size, "≥ 1")
        for key, name in self.columns.items():
            require(isinstance(name, str), f"data.columns.{key}", name, "the file's name of a key")
        require(self.max_tokens is None or self.max_tokens >= 2, "data.max_tokens", self.max_tokens, "≥ 2 or null")
        for name in (*SPLITS, "guard"):
            weights = [source.weight for source in self.sources(name)]
            allowed = "no weights: every record counts once there"
            require(name == "train" or set(weights) <= {1.0}, f"data.{name}", getattr(self, name), allowed)

    def _all_weights(self) -> dict[str, float]:
        """Those of all locations of train where there are several. Raises InputError."""
        given = sources(self.train, "data.train")
        names = source_names(given) if len(given) > 1 else []
        for name, weight in self.weights.items():
            allowed = f"names of data.train's locations: {', '.join(names)}" if names else "{} with one data.train"
            require(name in names, f"data.weights.{name}", weight, allowed)
            require(0 <= weight <= MOST_PASSES, f"data.weights.{name}", weight, f"0 to {MOST_PASSES}")
        found = {name: float(self.weights.get(name, source.weight)) for name, source in zip(names, given, strict=False)}
        require(not found or any(found.values()), "data.weights", found, "at least one above 0")
        return found

    def sources(self, split: str) -> list[Source]:
        """The locations of a split. Raises InputError for a value of another form."""
        found = sources(getattr(self, split), f"data.{split}")
        if split != "train" or not self.weights:
            return found
        return [replace(source, weight=weight) for source, weight in zip(found, self.weights.values(), strict=True)]

    def with_train(self, train: str | None) -> Data:
        """With other records for training, which have no weights."""
        return replace(self, train=train, weights={})

    @property
    def name(self) -> str:
        """What shows people which records are trained on: the end of each location of train, FOLDER/FILE."""
        return ", ".join(source.shown for source in self.sources("train"))

    @property
    def mixture(self) -> Mixture:
        """What is trained on of the records of train."""
        return Mixture(subset=self.subset, weights=self.weights)
