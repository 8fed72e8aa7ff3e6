"""Records outside of Python's memory: each is made when it is asked for.

A table keeps its records serialised in a temporary file that vanishes with it, in memory while they are few. A million
records of 1 KB take 16 MB of memory instead of 1.5 GB. Tables pickle whole: records go where they are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import operator
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any, NoReturn, cast, overload

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.records import Record
from raytune_llm.stores.disk_full import raise_if_no_room

MEMORY_BYTES = 32 << 20
"""Serialised records that a table keeps in memory before it takes a file."""
BATCH_RECORDS = 512


class RecordWriter:
    """Takes records one after another."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._store, self._dumps = _Store(memory_bytes), Serialiser()
        self._ends = array("q")

    def append(self, record: Record) -> None:
        """Raises InputError when the temporary folder is full."""
        self._ends.append(self._store.append(self._dumps(record)))

    def __len__(self) -> int:
        return len(self._ends)

    def table(self) -> RecordTable:
        """All that was appended; the writer takes no more."""
        ends = np.array(self._ends, dtype=np.int64)
        starts = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
        return RecordTable(self._store, starts, ends)


class RecordTable(Sequence[Record]):
    """Records in order."""

    def __init__(self, store: _Store, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._store, self._starts, self._ends = store, starts, ends

    @classmethod
    def of(cls, records: Sequence[Record]) -> RecordTable:
        """Records that are in memory."""
        writer = RecordWriter()
        for record in records:
            writer.append(record)
        return writer.table()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return RecordTable(self._store, self._starts[index], self._ends[index])
        row = operator.index(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"record {row} of {len(self)}")
        return cast(Record, pickle.loads(self._store.read(int(self._starts[row]), int(self._ends[row]))))

    def __iter__(self) -> Iterator[Record]:
        return (cast(Record, pickle.loads(data)) for data in self.serialised())

    def batches(self, size: int = BATCH_RECORDS) -> Iterator[list[Record]]:
        """All records, in lists of at most `size`."""
        batch: list[Record] = []
        for record in self:
            batch.append(record)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def serialised(self) -> Iterator[bytes]:
        """What is stored of each record; equal for equal records."""
        for first in range(0, len(self), BATCH_RECORDS):
            starts, ends = self._starts[first : first + BATCH_RECORDS], self._ends[first : first + BATCH_RECORDS]
            if np.array_equal(starts[1:], ends[:-1]):
                begin = int(starts[0])
                data = memoryview(self._store.read(begin, int(ends[-1])))
                yield from (bytes(data[start - begin : end - begin]) for start, end in _pairs(starts, ends))
            else:
                yield from (self._store.read(start, end) for start, end in _pairs(starts, ends))

    def hashes(self) -> NDArray[np.uint64]:
        """64 bits of a hash of each record, (n,); equal for equal records."""
        found = b"".join(hashlib.blake2b(data, digest_size=8).digest() for data in self.serialised())
        return np.frombuffer(found, dtype=np.uint64)

    def select(self, rows: Sequence[int] | NDArray[np.int64]) -> RecordTable:
        """These records, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return RecordTable(self._store, self._starts[index], self._ends[index])

    def __eq__(self, other: object) -> bool:
        """Whether the other is a sequence of equal records, in a table or not."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        data = list(self.serialised())
        return _restored, (b"".join(data), np.array(list(map(len, data)), np.int64))


class _Store:
    """Bytes end to end: in memory until there are many, then in a temporary file."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._most, self._size = memory_bytes, 0
        self._data = bytearray()
        self._file: IO[bytes] | None = None

    def append(self, data: bytes) -> int:
        """Where the data end. Raises InputError when the temporary folder is full."""
        self._size += len(data)
        if self._size <= self._most:
            self._data += data
            return self._size
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="raytune-llm-records-")  # noqa: SIM115 - as long as this
                self._file.write(self._data)
                self._data.clear()
            self._file.write(data)
        except OSError as error:
            self._fail(error)
        return self._size

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end). Raises InputError when the temporary folder is full."""
        if self._file is None:
            return bytes(self._data[start:end])
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)
        return os.pread(self._file.fileno(), end - start, start)

    def _fail(self, error: OSError) -> NoReturn:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what the file's buffer holds fails again
                self._file.close()
        raise_if_no_room(error, "the records")
        raise error


class Serialiser:
    """Pickles records without remembering objects, so that equal records give equal bytes."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._pickler = pickle.Pickler(self._buffer, protocol=5)
        self._pickler.fast = True

    def __call__(self, record: Record) -> bytes:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._pickler.dump(record)
        return self._buffer.getvalue()


def digest_of(records: Sequence[Record]) -> str:
    """sha256 of the records' contents, in their order; the same for a list and a table."""
    digest, dumps = hashlib.sha256(), Serialiser()
    serialised = records.serialised() if isinstance(records, RecordTable) else map(dumps, records)
    for data in serialised:
        digest.update(data)
    return digest.hexdigest()


def _restored(data: bytes, lengths: NDArray[np.int64]) -> RecordTable:
    store = _Store()
    store.append(data)
    ends = np.cumsum(lengths)
    return RecordTable(store, ends - lengths, ends)


def _pairs(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    return zip(starts.tolist(), ends.tolist(), strict=True)
