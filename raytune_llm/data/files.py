"""The records of a job: read from what its config names, parsed, every problem in them reported at once, and an eval
set carved where none is given."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytune_llm.data.config import SPLITS, Data, OnError
from raytune_llm.data.findings import Finding, Place, Severity
from raytune_llm.data.origins import Origins
from raytune_llm.data.parsing import Reader
from raytune_llm.data.parts import answer_of, is_instruction, prompt_of, text_key
from raytune_llm.data.question import plain
from raytune_llm.data.reading.formats import read
from raytune_llm.data.reading.problems import BadLine, DataError, Problems, Rejects
from raytune_llm.data.reading.sources import Locations, Source, Unreadable, expand, sources
from raytune_llm.data.reading.streams import FAILURES, why_unreadable
from raytune_llm.data.records import Record, RecordError
from raytune_llm.errors import InputError

CARVED_SHARE = 0.2
"""At most this share of train becomes the carved eval set."""
FEWEST_TO_CARVE = 5
MOST_SKIPPED = 0.5
"""Where more than this share of the lines can't be used, data.on_error=skip is refused: something else is wrong."""
MOST_UNUSED = 20
"""Keys that nothing reads which are shown, those of most records."""


@dataclass(frozen=True)
class Splits:
    """The records of a job, in the order of their files."""

    train: list[Record]
    eval: list[Record]
    test: list[Record]
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

    def where(self, split: str, index: int) -> str:
        """Where record `index` of a split was read, for messages: file and line."""
        origins = self.origins.get(split)
        return f"data.{split}, record {index + 1}" if origins is None else origins.where(index)

    def sources(self, split: str) -> dict[str, int]:
        """How many records of a split each of its files gave."""
        origins = self.origins.get(split)
        return {f"data.{split}": len(getattr(self, split))} if origins is None else origins.counts()

    def items(self) -> Iterator[tuple[str, list[Record]]]:
        """The splits that have records, by name."""
        yield from ((name, split) for name in SPLITS if (split := getattr(self, name)))


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
        self.unused: Counter[str] = Counter()
        self.first_unused: dict[str, str] = {}

    def split(self, given: Sequence[Source], key: str, digest: Any) -> tuple[list[Record], Origins]:
        """The records of all these locations."""
        records: list[Record] = []
        origins = Origins()
        for source in given:
            for file in expand(source):
                if isinstance(file, Unreadable):
                    self.problems.add(f"{file.path} ({key}): ", None, file.reason)
                    continue
                origins.begin(file)
                for line, record in self._file(file.path, key, digest):
                    records.append(record)
                    origins.add(line)
        return records, origins

    def _file(self, path: str, key: str, digest: Any) -> Iterator[tuple[int, Record]]:
        is_empty = True
        try:
            for line, raw in read(path, digest):
                is_empty = False
                self.num_lines += 1
                record = self._record(path, line, raw)
                if record is not None:
                    yield line, record
            if is_empty:
                self.problems.add(f"{path} ({key}): ", None, "the file is empty; expected one JSON object a line")
        except FAILURES as error:
            self.problems.add(f"{path} ({key}): ", None, why_unreadable(path, error))

    def _record(self, path: str, line: int, raw: object | BadLine) -> Record | None:
        try:
            if isinstance(raw, BadLine):
                raise RecordError("record", str(raw), "")
            record, unused = self._reader.read(raw)
        except RecordError as error:
            text = str(raw if isinstance(raw, BadLine) else error)
            if self.reading.on_error is OnError.stop:
                self.problems.add(path, line, text)
            else:
                self.rejects.add(path, line, text, str(raw) if isinstance(raw, BadLine) else raw)
            return None
        for key in unused:
            if not self.unused[key]:
                self.first_unused[key] = f"{Path(path).name}:{line}"
            self.unused[key] += 1
        return record

    def check(self) -> None:
        """Raise DataError for the problems so far."""
        if self.rejects.count > MOST_SKIPPED * self.num_lines:
            found = f"{self.rejects.count} of {self.num_lines} lines can't be used, too many to skip"
            self.problems.add("data", None, f": {found}; data.on_error=stop names them")
        if self.problems.total:
            raise self.problems.error()

    def findings(self) -> tuple[Finding, ...]:
        """What nothing read."""
        found = []
        for key, count in self.unused.most_common(MOST_UNUSED):
            place = Place(self.first_unused[key], key)
            text = f"nothing reads the key {key} of {count} records"
            found.append(Finding("unused_keys", Severity.note, "", text, count, (place,)))
        return tuple(found)


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
    reader, records, origins, fingerprints = Sources(reading), dict[str, list[Record]](), dict[str, Origins](), {}
    for name, given in named.items():
        digest = hashlib.sha256()
        key = train_key if name == "train" else f"data.{name}"
        records[name], origins[name] = reader.split(given, key, digest)
        fingerprints[name] = digest.hexdigest()
    reader.check()
    carved = bool(records.get("train")) and data.eval is None
    if carved:
        kept, chosen = carve(records["train"], data.eval_size, seed)
        whole, places = records["train"], origins["train"]
        records |= {"train": [whole[i] for i in kept], "eval": [whole[i] for i in chosen]}
        origins |= {"train": places.select(kept), "eval": places.select(chosen)}
    train, evaluation, test = (records.get(name, []) for name in SPLITS)
    return Splits(
        train, evaluation, test, fingerprints, carved, origins, reader.findings(), reader.rejects, reader.num_lines
    )


def read_records(locations: Locations, key: str, kinds: Sequence[type]) -> list[Any]:
    """All records of one location, as one of `kinds` each; `key` is the config's, for messages.

    Raises:
        DataError: as `load` does.
    """
    reader = Sources(Reading(kinds=tuple(kinds)))
    records, _ = reader.split(sources(locations, key), key, hashlib.sha256())
    reader.check()
    return records


def carve(records: Sequence[Record], size: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of train and of an eval set of at most `size` different records, whose prompts don't occur in train.

    Where a few prompts are instructions for all records, prompt and answer count together. Which
    records are chosen depends on them and the seed alone, so that more data move few of them; orders are kept.

    Raises:
        DataError: there are fewer than 5 different records.
    """
    prompts = [text_key(plain(prompt_of(record))) for record in records]
    with_answer = is_instruction(len(set(prompts)), len(prompts))
    groups: dict[str, dict[Record, int]] = {}
    for index, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        group = f"{prompt}\n{text_key(plain(answer_of(record) or ''))}" if with_answer else prompt
        groups.setdefault(group, {}).setdefault(record, index)
    num_unique = sum(map(len, groups.values()))
    room = min(size, int(num_unique * CARVED_SHARE))
    chosen: set[str] = set()
    for group in sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest()):
        if len(groups[group]) <= room:
            chosen.add(group)
            room -= len(groups[group])
    if not chosen:
        found = (
            f"{num_unique} different records with {len(groups)} different prompts, too few to carve an eval set from"
        )
        raise DataError([f"data.train: found {found}, expected at least {FEWEST_TO_CARVE}; or name data.eval"], 1)
    evaluation = sorted(index for group in chosen for index in groups[group].values())
    held = {record for group in chosen for record in groups[group]}
    return [index for index, record in enumerate(records) if record not in held], evaluation


__all__ = ["BadLine", "Data", "DataError", "Splits", "carve", "load", "read", "read_records"]
