"""The rows of a location with their line numbers, whatever its format: JSON lines, a JSON array or several objects over
many lines, CSV, TSV, Parquet, Arrow, a data set of the hub.

The first bytes and the name tell the format. Nulls within rows of Parquet, Arrow and the hub are left out: these
formats fill them in.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Any

from raytune_llm.data.reading.delimited import DELIMITED, LONGEST_LINE, delimited_rows
from raytune_llm.data.reading.problems import BadLine
from raytune_llm.data.reading.sources import SUFFIXES, check_hub_name, format_of, is_hub
from raytune_llm.data.reading.streams import (
    CHUNK,
    REMOTE_SECONDS,
    Stream,
    of_library,
    open_seekable,
    open_stream,
    rows_of,
    within,
)
from raytune_llm.data.reading.whole_json import decoded, whole_values
from raytune_llm.errors import InputError

Row = tuple[int, object | BadLine]
"""Line number, from 1, and what is there."""

UNICODE_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
BATCH_ROWS = 1000


def read(path: str, digest: Any = None) -> Iterator[Row]:
    """The rows of a location, blank lines passed over. `digest` (hashlib) is fed all that is read.

    Raises:
        FAILURES of reading.streams: the location can't be opened or read to its end.
    """
    digest = hashlib.sha256() if digest is None else digest
    if is_hub(path):
        return _columnar(_hub_rows(path), digest)
    stream = open_stream(path)
    if stream.head.startswith(b"PAR1"):
        source = io.BytesIO(stream.readall()) if stream.is_unpacked else open_seekable(path)
        return _columnar(_parquet_rows(source), digest)
    if stream.head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return _columnar(_arrow_rows(stream), digest)
    return _text_rows(path, stream, digest)


def _text_rows(path: str, stream: Stream, digest: Any) -> Iterator[Row]:
    encoding = next((name for mark, name in UNICODE_MARKS.items() if stream.head.startswith(mark)), None)
    if encoding is None and b"\0" in stream.head[:1024]:
        raise InputError("is no text; JSON lines, a JSON array, CSV, TSV, Parquet and Arrow are read, also compressed")
    suffix = next((found for name in (stream.name, path) if (found := format_of(name)) in SUFFIXES), None)
    reader: IO[bytes] = io.BufferedReader(Digesting(stream, digest), CHUNK)
    with reader:
        if suffix in DELIMITED:
            yield from delimited_rows(reader, encoding or "utf-8-sig", suffix)
        elif encoding is not None:
            yield from _json_lines(io.BufferedReader(Recoded(reader, encoding), CHUNK))
        elif _is_whole(stream.head):
            yield from whole_values(io.TextIOWrapper(reader, "utf-8-sig", newline=""))
        else:
            yield from _json_lines(reader)


def _is_whole(head: bytes) -> bool:
    """Whether a text begins a JSON array, or an object that goes over several lines."""
    start = head.decode("utf-8-sig", errors="replace").lstrip()
    return start.startswith("[") or start.partition("\n")[0].strip() == "{"


class Digesting(io.RawIOBase):
    """Bytes that are fed to a digest as they are read."""

    def __init__(self, inner: Stream, digest: Any) -> None:
        self._inner, self._digest = inner, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._inner.readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        return count


class Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, inner: IO[bytes], encoding: str) -> None:
        self._text, self._waiting = io.TextIOWrapper(inner, encoding, newline=""), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._waiting = self._waiting or self._text.read(CHUNK).encode()
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count


def _json_lines(stream: IO[bytes]) -> Iterator[Row]:
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            yield number, BadLine(None, f"a line of more than {LONGEST_LINE >> 20} MiB; expected one record a line")
            return
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            excerpt = line[max(0, error.start - 20) : error.start + 20].decode("latin-1")
            reason = f"byte 0x{line[error.start]:02x} is not UTF-8; save the file as UTF-8"
            yield number, BadLine(error.start + 1, reason, excerpt, line.decode("latin-1"))
            continue
        if text.strip():
            value = decoded(text.rstrip("\r\n"))
            yield number, replace(value, content=text) if isinstance(value, BadLine) else value


def _columnar(rows: Iterator[Any], digest: Any) -> Iterator[Row]:
    number = 0
    for number, row in enumerate(rows, start=1):
        digest.update(json.dumps(row, ensure_ascii=False, default=str).encode(errors="backslashreplace") + b"\n")
        yield number, without_nulls(row)
    if not number:
        raise InputError("has no rows; expected one record a row")


def without_nulls(value: Any) -> Any:
    """A row without the keys that its format filled in for other rows."""
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _parquet_rows(source: Any) -> Iterator[Any]:
    from pyarrow import parquet

    with of_library():
        file = parquet.ParquetFile(source)
    with file:
        yield from rows_of(file.iter_batches(batch_size=BATCH_ROWS), lambda batch: [batch.to_pylist()])


def _arrow_rows(stream: Stream) -> Iterator[Any]:
    """Of Arrow's stream format, also within its file format, whose stream follows eight bytes."""
    from pyarrow import ipc

    if stream.head.startswith(b"ARROW1"):
        stream.read(8)
    with of_library():
        batches = ipc.open_stream(stream)
    with batches:
        yield from rows_of(batches, _pieces)


def _pieces(batch: Any) -> Iterator[list[Any]]:
    """The rows of an Arrow batch, which may be large, some at a time."""
    return (batch.slice(start, BATCH_ROWS).to_pylist() for start in range(0, batch.num_rows, BATCH_ROWS))


def _hub_rows(path: str) -> Iterator[Any]:
    name, config, split = check_hub_name(path)
    with of_library():
        import datasets

        found = within(10 * REMOTE_SECONDS, lambda: datasets.load_dataset(name, config, split=split))
    yield from rows_of(found, lambda row: [[row]])
