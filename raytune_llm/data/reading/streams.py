"""The bytes of a location, local or remote, uncompressed whatever its name says: the first bytes tell."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import IO, Any, TypeVar

from raytune_llm.data.reading.sources import DENIED, is_remote, names, why_missing
from raytune_llm.errors import InputError, causes, first_line

T = TypeVar("T")
REMOTE_SECONDS = 60.0
"""A remote location that gives no first byte by then can't be read."""
CHUNK = 1 << 20
HEAD_BYTES = 8192


class Unread(Exception):
    """A library can't open or read a location; the cause says why."""


FAILURES = (InputError, Unread, OSError, UnicodeDecodeError)
"""What opening and reading raise where a location is missing, damaged, or no such service is installed. No other error
is the location's fault."""


@contextmanager
def of_library() -> Iterator[None]:
    """Raise Unread for what a library raises here, whatever that is: pyarrow has ValueErrors of its own for damaged
    files, fsspec ImportErrors for services that aren't installed, zipfile RuntimeErrors for passwords. Only calls of
    libraries stand below it, and the streams that they read, so that a fault of this program stays one."""
    try:
        yield
    except (*FAILURES, MemoryError):
        raise
    except Exception as error:
        raise Unread from error


def rows_of(batches: Iterable[Any], to_rows: Callable[[Any], Iterable[list[Any]]]) -> Iterator[Any]:
    """The rows of a library's batches, of each some at a time. Raises one of FAILURES where there are no further
    ones."""
    pieces = (rows for batch in batches for rows in to_rows(batch))
    while True:
        with of_library():
            rows = next(pieces, None)
        if rows is None:
            return
        yield from rows


class Stream(io.RawIOBase):
    """Bytes whose first ones are known already. A reader that begins with `head` again.

    `name`: what the file is called, where an archive says so. `is_unpacked`: whether it was compressed."""

    def __init__(self, inner: Any, name: str = "", *, is_unpacked: bool = False) -> None:
        self._inner, self.name, self.is_unpacked = inner, name, is_unpacked
        self.head = b""
        while len(self.head) < HEAD_BYTES and (chunk := self._read(HEAD_BYTES - len(self.head))):
            self.head += chunk
        self._waiting = self.head

    def _read(self, count: int) -> bytes:
        with of_library():
            found: bytes = self._inner.read(count)
        return found

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._waiting[: len(buffer)] or self._read(len(buffer))
        self._waiting = self._waiting[len(chunk) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._inner.close()
        super().close()


def open_stream(path: str) -> Stream:
    """The uncompressed bytes of a location. Raises one of FAILURES."""
    stream = within(REMOTE_SECONDS, lambda: Stream(_open(path))) if is_remote(path) else Stream(_open(path))
    while (opener := _decompressor(stream.head)) is not None:
        inner = opener(io.BufferedReader(stream, CHUNK))
        name = PurePath(inner.name).name if isinstance(inner, zipfile.ZipExtFile) else stream.name
        stream = Stream(inner, name, is_unpacked=True)
    return stream


def open_seekable(path: str) -> Any:
    """A location that is read here and there, as Parquet is. Raises one of FAILURES."""
    if path.startswith(("s3://", "gs://")):
        with of_library():
            system, inner = within(REMOTE_SECONDS, lambda: _pyarrow_system(path))
            return within(REMOTE_SECONDS, lambda: system.open_input_file(inner))
    return within(REMOTE_SECONDS, lambda: _open(path)) if is_remote(path) else _open(path)


def _open(path: str) -> Any:
    if path.startswith(("s3://", "gs://")):
        with of_library():
            system, inner = _pyarrow_system(path)
            return system.open_input_stream(inner, compression=None)
    if "://" in path:
        with of_library():
            import fsspec

            return fsspec.open(path, "rb", compression=None).open()
    reason = why_missing(os.path.expanduser(path))
    if reason is not None:
        raise InputError(reason)
    return open(os.path.expanduser(path), "rb")


def _pyarrow_system(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    system, inner = fs.FileSystem.from_uri(path)
    return system, inner


def _decompressor(head: bytes) -> Callable[[IO[bytes]], Any] | None:
    """What reads a compressed file with these first bytes; None for one that isn't compressed."""
    openers: dict[bytes, Callable[[IO[bytes]], Any]] = {
        b"\x1f\x8b": lambda inner: gzip.GzipFile(fileobj=inner),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ\x00": lzma.LZMAFile,
        b"\x28\xb5\x2f\xfd": _zstd,
        b"PK\x03\x04": _zip,
        b"PK\x05\x06": _zip,
    }
    return next((opener for magic, opener in openers.items() if head.startswith(magic)), None)


def _zstd(inner: IO[bytes]) -> Any:
    """By Arrow, which notices a file that was cut."""
    import pyarrow

    with of_library():
        return pyarrow.CompressedInputStream(pyarrow.PythonFile(inner, mode="r"), "zstd")


def _zip(inner: IO[bytes]) -> Any:
    """The only file in a zip archive, which is read whole: its directory is at its end."""
    with of_library():
        archive = zipfile.ZipFile(io.BytesIO(inner.read()))
    entries = [name for name in archive.namelist() if not name.endswith("/") and not _is_of_system(name)]
    if any(name.startswith(("xl/", "word/", "ppt/")) for name in entries):
        raise InputError("is an Office document; save the sheet as CSV (UTF-8)")
    if len(entries) != 1:
        many = "no file" if not entries else f"{len(entries)} files ({names(entries)})"
        raise InputError(f"is a zip archive of {many}; expected one file; unpack it, and name the files one by one")
    with of_library():
        return archive.open(entries[0])


def _is_of_system(name: str) -> bool:
    """Whether a file in an archive is one that an operating system adds: of macOS and Windows."""
    parts = PurePath(name).parts
    return (
        parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")
    )


def within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result. Raises what it raises, and TimeoutError when it takes longer; it is then left to a thread that
    doesn't keep the process alive: clients of remote storage try again for many minutes."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds; is there a network, and are you logged in?")
    return found[0]


def why_unreadable(path: str, error: BaseException) -> str:
    """What is wrong with a location that raised this."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, PermissionError) and not is_remote(path):
        return DENIED
    if isinstance(error, UnicodeDecodeError):
        what = f"byte 0x{error.object[error.start]:02x} is not {error.encoding.upper()}"
        return f"can't be read to its end: {what}; save the file as UTF-8"
    reasons = dict.fromkeys(
        f"{type(cause).__name__}: {first_line(cause)}" if str(cause).strip() else type(cause).__name__
        for cause in causes(error)
        if not isinstance(cause, Unread)
    )
    return "can't be read: " + "; caused by ".join(list(reasons)[:3])
