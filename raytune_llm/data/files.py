"""Where records come from: which files a job names, how they are read, and every problem in them reported at once.

A location is one of
    /path, ~/path or ./path     a local JSONL file, also .gz (or .bz2, .xz)
    s3://…, gs://…, https://…   a remote one: pyarrow's file systems for s3 and gs, fsspec for the rest
    hf:org/name                 a data set of the Hugging Face hub (or a local folder of one), its split `train`
    hf:org/name:split           another split, slices too: hf:org/name:train[:1000]
    hf:org/name:config:split    of one configuration

Texts are UTF-8, one JSON object a line; a byte-order mark and blank lines are passed over.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raytune_llm.data.parsing import parse
from raytune_llm.data.records import Record, RecordError
from raytune_llm.errors import InputError, require
from raytune_llm.stores.locations import LOCATION

SHOWN_PROBLEMS = 20
CARVED_SHARE = 0.2
"""At most this share of train becomes the carved eval set."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The records of a job; raytune_llm/data/files.py lists the forms of a location."""

    train: str | None = field(metadata=LOCATION)
    """Location of the training records; null only where nothing is trained."""
    eval: str | None = field(metadata=LOCATION)
    """Location of the records that stop, rank and select trials; null = a seeded split carved from train."""
    test: str | None = field(metadata=LOCATION)
    """Location of records that no trial sees, for the final comparison; null = none."""
    eval_size: int
    """Most records of a carved eval set, which also is at most a fifth of train; ≥ 1. Ignored where eval is given."""
    max_tokens: int | None
    """Longest token sequence of a record; ≥ 2, or null for the base's context (at most 2048)."""

    def __post_init__(self) -> None:
        require(self.eval_size >= 1, "data.eval_size", self.eval_size, "≥ 1")
        require(self.max_tokens is None or self.max_tokens >= 2, "data.max_tokens", self.max_tokens, "≥ 2 or null")
        for name in ("train", "eval", "test"):
            location = getattr(self, name)
            require(location is None or bool(location.strip()), f"data.{name}", repr(location), "a location or null")


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

    def where(self, split: str, index: int) -> str:
        """Where record `index` of a split was read, for messages."""
        return f"data.{split}, record {index + 1}"

    def sources(self, split: str) -> dict[str, int]:
        """How many records of a split each of its sources gave."""
        return {f"data.{split}": len(getattr(self, split))}

    def items(self) -> Iterator[tuple[str, list[Record]]]:
        """The splits that have records, by name."""
        yield from ((name, split) for name in ("train", "eval", "test") if (split := getattr(self, name)))


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no JSON."""

    column: int
    """Where it stops being JSON, characters from 1."""
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"column {self.column}: not JSON: {self.reason}, near {self.excerpt!r}"


class DataError(InputError):
    """All that is wrong with a job's data; the first problems are shown, and their number."""

    def __init__(self, problems: Sequence[str], total: int) -> None:
        shown = "\n".join(f"  {problem}" for problem in problems)
        more = f"\n  … and {total - len(problems)} more" if total > len(problems) else ""
        many = "1 problem" if total == 1 else f"{total} problems"
        super().__init__(
            f"{many} in the data:\n{shown}{more}\n"
            "Correct them, then run jobs/check.py with the same data and method: it needs no accelerator."
        )
        self.problems, self.total = tuple(problems), total


@dataclass
class _Problems:
    shown: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, problem: str) -> None:
        self.total += 1
        if len(self.shown) < SHOWN_PROBLEMS:
            self.shown.append(problem)


def load(data: Data, kinds: Sequence[type], seed: int, *, train_key: str = "data.train") -> Splits:
    """All records that the job names, as one of `kinds` each (what its method takes); `seed` carves the eval set;
    messages call the location of train by `train_key`.

    Raises:
        DataError: naming file, line, key, what was found and what was expected, for the first 20 of all problems.
    """
    named = {name: uri for name in ("train", "eval", "test") if (uri := getattr(data, name)) is not None}
    if not named:
        raise InputError("data.train, data.eval and data.test are all null; name at least one location")
    problems, splits, fingerprints = _Problems(), dict[str, list[Record]](), dict[str, str]()
    for name, uri in named.items():
        digest = hashlib.sha256()
        key = train_key if name == "train" else f"data.{name}"
        splits[name] = list(_records(uri, key, kinds, digest, problems))
        fingerprints[name] = digest.hexdigest()
    if problems.total:
        raise DataError(problems.shown, problems.total)
    train, evaluation = splits.get("train", []), splits.get("eval", [])
    carved = bool(train) and data.eval is None
    if carved:
        train, evaluation = carve(train, data.eval_size, seed)
    return Splits(train, evaluation, splits.get("test", []), fingerprints, carved)


def read_records(uri: str, key: str, kinds: Sequence[type]) -> list[Any]:
    """All records of one location, as one of `kinds` each; `key` is the config's, for messages.

    Raises:
        DataError: as `load` does.
    """
    problems = _Problems()
    records = list(_records(uri, key, kinds, hashlib.sha256(), problems))
    if problems.total:
        raise DataError(problems.shown, problems.total)
    return records


def carve(records: list[Record], size: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Split off an eval set of different records, with their duplicates removed from train; orders are kept.

    Raises:
        DataError: there are fewer than 5 different records.
    """
    unique = list(dict.fromkeys(records))
    count = min(size, int(len(unique) * CARVED_SHARE))
    if count == 0:
        found = f"{len(unique)} different records, too few to carve an eval set from"
        raise DataError([f"data.train: found {found}, expected at least 5; or name data.eval"], 1)
    chosen = set(random.Random(f"{seed}:eval").sample(unique, count))
    return [record for record in records if record not in chosen], [record for record in unique if record in chosen]


def _records(uri: str, key: str, kinds: Sequence[type], digest: Any, problems: _Problems) -> Iterator[Record]:
    num_lines = 0
    try:
        for number, raw in read(uri, digest):
            num_lines += 1
            if isinstance(raw, BadLine):
                problems.add(f"{uri}:{number}: {raw}")
                continue
            try:
                yield parse(raw, kinds)
            except RecordError as error:
                problems.add(f"{uri}:{number}: {error}")
        if num_lines == 0:
            problems.add(f"{uri} ({key}): the file is empty; expected one JSON object a line")
    except (OSError, ValueError, ImportError, EOFError, zlib.error) as error:
        problems.add(f"{uri} ({key}): {_why_unreadable(uri, error)}")


def read(uri: str, digest: Any = None) -> Iterator[tuple[int, object | BadLine]]:
    """Line numbers, from 1, with the JSON value or the BadLine found there; blank lines are passed over.

    `digest` (hashlib) is fed everything read. A file that is one JSON array or pretty-printed gives one BadLine.

    Raises:
        OSError, ValueError, ImportError, EOFError, zlib.error: the location can't be opened or read to its end.
    """
    first = True
    for number, line in _lines(uri):
        if digest is not None:
            digest.update(line)
        value = _decode(line)
        if value is None:
            continue
        if first and (whole := _is_whole(line)):
            yield number, BadLine(1, f"{whole}, expected one object a line (jq -c converts it)", line[:40].decode())
            return
        first = False
        yield number, value[0]


def _decode(line: bytes) -> tuple[object | BadLine] | None:
    """The value of a line, in a tuple of its own since the value may be null; None for a blank line."""
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        excerpt = line[max(0, error.start - 20) : error.start + 20].decode("latin-1")
        return (
            BadLine(error.start + 1, f"byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8", excerpt),
        )
    if not text.strip():
        return None
    try:
        return (json.loads(text),)
    except json.JSONDecodeError as error:
        return (BadLine(error.colno, error.msg.lower(), text[max(0, error.pos - 20) : error.pos + 20]),)
    except RecursionError:
        return (BadLine(1, "nested too deeply", text[:40]),)


def _is_whole(line: bytes) -> str | None:
    start = line.decode("utf-8-sig", errors="replace").strip()
    if start.startswith("["):
        return "the file is one JSON array"
    return "the file is pretty-printed" if start == "{" else None


def _lines(uri: str) -> Iterator[tuple[int, bytes]]:
    if uri.startswith("hf:") and not uri.startswith("hf://"):
        rows = (json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n" for row in _hub_rows(uri))
        yield from enumerate(rows, start=1)
        return
    with _open(uri) as stream:
        yield from enumerate(stream, start=1)


def _open(uri: str) -> Any:
    """The bytes of a file, uncompressed."""
    if uri.startswith(("s3://", "gs://")):
        import io

        from pyarrow import fs

        system, path = fs.FileSystem.from_uri(uri)
        return io.BufferedReader(system.open_input_stream(path, compression="detect"))
    import fsspec

    local = "://" not in uri
    return fsspec.open(os.path.expanduser(uri) if local else uri, "rb", compression="infer").open()


def _hub_rows(uri: str) -> Iterator[Any]:
    import datasets

    name, *rest = re.split(r":(?![^\[]*\])", uri.removeprefix("hf:"))
    if not name or len(rest) > 2 or not all(rest):
        raise ValueError("expected hf:org/name, hf:org/name:split or hf:org/name:config:split")
    config = rest[0] if len(rest) == 2 else None
    yield from datasets.load_dataset(os.path.expanduser(name), config, split=rest[-1] if rest else "train")


def _why_unreadable(uri: str, error: Exception) -> str:
    """What is wrong with a location, and similar names near it."""
    if "://" in uri or uri.startswith("hf:"):
        return f"can't be read: {type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    if isinstance(error, PermissionError):
        return "permission denied; make it readable for the user of this job"
    path = Path(uri).expanduser()
    if path.is_dir():
        return f"is a folder; name a file in it: {_names(sorted(path.glob('*.json*')))}"
    if path.exists():
        return f"can't be read: {error}"
    if not path.parent.is_dir():
        nearest = next(parent for parent in path.parents if parent.is_dir())
        return f"no such file; its folder is missing too, the nearest that exists is {nearest}"
    entries = sorted(entry.name for entry in path.parent.iterdir())
    close = difflib.get_close_matches(path.name, entries, n=3, cutoff=0.5)
    return (
        f"no such file; did you mean {_names(close)}?" if close else f"no such file; its folder has {_names(entries)}"
    )


def _names(entries: Sequence[str | Path]) -> str:
    """The first few of them."""
    more = " …" if len(entries) > 8 else ""
    return (", ".join(Path(entry).name for entry in entries[:8]) or "nothing of that kind") + more
