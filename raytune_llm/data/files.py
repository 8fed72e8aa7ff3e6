"""The records of a job: read from what its config names, parsed, every problem in them reported at once, and an eval
set carved where none is given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.carving import carve
from raytune_llm.data.config import SPLITS, Data, OnError
from raytune_llm.data.dialects.leftovers import Leftovers
from raytune_llm.data.dialects.parsing import Reader
from raytune_llm.data.findings import Finding
from raytune_llm.data.origins import Origins
from raytune_llm.data.reading.formats import read
from raytune_llm.data.reading.problems import BadLine, DataError, Problems, Rejects, check_skipped
from raytune_llm.data.reading.sources import Locations, Source, Unreadable, expand, sources
from raytune_llm.data.reading.streams import FAILURES, why_unreadable
from raytune_llm.data.records import Record, RecordError
from raytune_llm.data.tables.record_table import RecordTable, RecordWriter
from raytune_llm.errors import InputError

NONE_LEFT = ": none of its records can be used; data.on_error=stop names the reasons"
MANY_RECORDS = 10_000
"""From here on records are kept outside of memory."""


@dataclass(frozen=True)
class Splits:
    """The records of a job, in the order of their files."""

    train: Sequence[Record]
    eval: Sequence[Record]
    test: Sequence[Record]
    fingerprints: dict[str, str]
    """sha256 of what each location held, uncompressed, by split; a carved eval set has train's only."""
    carved: bool
    """Whether eval was carved from train."""
    origins: dict[str, Origins] = field(default_factory=dict, compare=False)
    """Where the records of each split were read."""
    findings: tuple[Finding, ...] = ()
    """What reading them showed: keys that nothing reads."""
    rejects: Rejects = field(default_factory=Rejects, compare=False)
    """The lines left out."""
    num_lines: int = 0
    """Lines read, those left out too."""
    carving: Carving | None = field(default=None, compare=False, repr=False)
    """How eval was carved from train."""

    def where(self, split: str, index: int) -> str:
        """Where record `index` of a split was read, for messages: file and line."""
        origins = self.origins.get(split)
        return f"data.{split}, record {index + 1}" if origins is None else origins.where(index)

    def origin(self, split: str, index: int) -> tuple[str, int]:
        """Path and line of a record; the split and its number where they aren't known."""
        origins = self.origins.get(split)
        return (f"data.{split}", index + 1) if origins is None else (origins.source(index), origins.line(index))

    def without(self, dropped: Mapping[str, Sequence[int]]) -> Splits:
        """All but some records of each split, by their indices; eval is not carved anew."""
        remaining, origins = list[Sequence[Record]](), dict(self.origins)
        for name in SPLITS:
            whole: Sequence[Record] = getattr(self, name)
            kept = np.delete(np.arange(len(whole)), np.asarray(dropped.get(name, ()), dtype=np.int64))
            remaining.append(_chosen(whole, kept) if len(kept) < len(whole) else whole)
            if name in origins and len(kept) < len(whole):
                origins[name] = origins[name].select(kept.tolist())
        train, evaluation, test = remaining
        return replace(self, train=train, eval=evaluation, test=test, origins=origins, carving=None)

    def sources(self, split: str) -> dict[str, int]:
        """How many records of a split each of its files gave."""
        origins = self.origins.get(split)
        return {f"data.{split}": len(getattr(self, split))} if origins is None else origins.counts()

    def items(self) -> Iterator[tuple[str, Sequence[Record]]]:
        """The splits that have records, by name."""
        yield from ((name, split) for name in SPLITS if (split := getattr(self, name)))


@dataclass(frozen=True, eq=False)
class Carving:
    """Train as it was read, and what was made of it."""

    whole: Splits
    """Without eval."""
    train: NDArray[np.int64]
    """Indices in the whole train; ascending."""
    eval: NDArray[np.int64]
    size: int
    seed: int

    def again(self, whole: Splits) -> Splits:
        """Carved the same way from other records. Raises DataError as `carve` does."""
        return carved(whole, self.size, self.seed)


def carved(whole: Splits, size: int, seed: int) -> Splits:
    """With an eval set of at most `size` records that train then lacks. Raises DataError as `carve` does."""
    train, held = carve(whole.train, size, seed)
    origins = {name: whole.origins["train"].select(rows.tolist()) for name, rows in (("train", train), ("eval", held))}
    return replace(
        whole,
        train=_chosen(whole.train, train),
        eval=_chosen(whole.train, held),
        carved=True,
        origins=whole.origins | origins,
        carving=Carving(whole, train, held, size, seed),
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How lines become records."""

    kinds: tuple[type, ...]
    """What the method takes; each record becomes one of them."""
    columns: dict[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    on_error: OnError = OnError.stop


class Sources:
    """Reads locations, and keeps what it finds wrong or odd in them."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.problems, self.rejects = reading, Problems(), Rejects()
        self._reader = Reader(reading.kinds, columns=reading.columns, ignore=reading.ignore)
        self.num_lines = 0
        self.leftovers = Leftovers(reading.ignore, reading.columns)

    def split(self, given: Sequence[Source], key: str, digest: Any) -> tuple[Sequence[Record], Origins]:
        """The records of all these locations: a list, or outside of memory where they are many."""
        records, origins = RecordWriter(), Origins()
        for source in given:
            for file in expand(source):
                if isinstance(file, Unreadable):
                    self.problems.add(f"{file.path} ({key}): ", None, file.reason)
                    continue
                origins.begin(file)
                for line, record in self._file(file.path, key, digest):
                    records.append(record)
                    origins.add(line)
        table = records.table()
        return list(table) if len(table) < MANY_RECORDS else table, origins

    def _file(self, path: str, key: str, digest: Any) -> Iterator[tuple[int, Record]]:
        lines, is_empty = None, True
        while True:
            try:
                lines = lines or read(path, digest)
                line, raw = next(lines, (0, None))
            except FAILURES as error:
                self.problems.add(f"{path} ({key}): ", None, why_unreadable(path, error))
                return
            if not line:
                break
            is_empty = False
            self.num_lines += 1
            record = self._record(path, line, raw)
            if record is not None:
                yield line, record
        if is_empty:
            self.problems.add(f"{path} ({key}): ", None, "the file is empty; expected one JSON object a line")

    def _record(self, path: str, line: int, raw: object | BadLine) -> Record | None:
        try:
            if isinstance(raw, BadLine):
                raise RecordError("record", str(raw), "")
            self.leftovers.see(raw)
            record, unused = self._reader.read(raw)
        except RecordError as error:
            text = str(raw if isinstance(raw, BadLine) else error)
            if self.reading.on_error is OnError.stop:
                self.problems.add(path, line, text)
            else:
                self.rejects.add(path, line, text, (raw.content or str(raw)) if isinstance(raw, BadLine) else raw)
            return None
        if unused:
            self.leftovers.add(unused, f"{Path(path).name}:{line}")
        return record

    def check(self) -> None:
        """Raise DataError for the problems so far."""
        check_skipped(self.rejects, self.num_lines, self.problems)
        if not self.problems.total:
            for text in self.leftovers.absent_columns():
                self.problems.add("", None, text)
        if self.problems.total:
            raise self.problems.error()


def load(data: Data, kinds: Sequence[type], seed: int, *, train_key: str = "data.train") -> Splits:
    """All records that the job names, as one of `kinds` each (what its method takes); `seed` carves the eval set;
    messages call the location of train by `train_key`.

    Raises:
        DataError: naming file, line, key, what was found and what was expected: each kind of problem, with its first
            lines and their number.
    """
    named = {name: given for name in SPLITS if (given := data.sources(name))}
    if not named:
        raise InputError("data.train, data.eval and data.test are all null; name at least one location")
    reading = Reading(kinds=tuple(kinds), columns=data.columns, ignore=tuple(data.ignore), on_error=data.on_error)
    reader, records, origins, fingerprints = Sources(reading), dict[str, Sequence[Record]](), dict[str, Origins](), {}
    for name, given in named.items():
        digest = hashlib.sha256()
        key = train_key if name == "train" else f"data.{name}"
        records[name], origins[name] = reader.split(given, key, digest)
        fingerprints[name] = digest.hexdigest()
        if not records[name] and not reader.problems.total:
            reader.problems.add(key, None, NONE_LEFT)
    reader.check()
    train, evaluation, test = (records.get(name, []) for name in SPLITS)
    whole = Splits(
        train,
        evaluation,
        test,
        fingerprints,
        False,
        origins,
        tuple(reader.leftovers.findings()),
        reader.rejects,
        reader.num_lines,
    )
    return carved(whole, data.eval_size, seed) if train and data.eval is None else whole


def read_records(locations: Locations, key: str, kinds: Sequence[type]) -> list[Any]:
    """All records of one location, as one of `kinds` each; `key` is the config's, for messages.

    Raises:
        DataError: as `load` does.
    """
    reader = Sources(Reading(kinds=tuple(kinds)))
    records, _ = reader.split(sources(locations, key), key, hashlib.sha256())
    reader.check()
    return list(records)


def _chosen(records: Sequence[Record], indices: NDArray[np.int64]) -> Sequence[Record]:
    """These records, in this order; of those outside of memory a table of the same file."""
    return records.select(indices) if isinstance(records, RecordTable) else [records[i] for i in indices.tolist()]


__all__ = ["BadLine", "Data", "DataError", "Splits", "load", "read", "read_records"]
