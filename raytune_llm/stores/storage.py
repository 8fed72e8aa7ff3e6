"""One small layer over folders: the same code works for a local path and for s3://, gs:// or any fsspec URI
(memory://).

Local folders go through the operating system, for what only it can promise: atomic replacement, exclusive creation,
locks, data that is on disk when a call returns. Object stores go through pyarrow.fs, and through fsspec where pyarrow
has no implementation of its own (Ray's storage does the same). Their promise is smaller: one object is put as a whole
or not at all, and a listing shows every object whose put has ended (true of S3, GCS and Azure). `claim` and `lock`
say what follows from it.

Paths given to a Storage are relative to its root, with '/' between parts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from raytune_llm.errors import InputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CHUNK_BYTES = 1 << 22
PYARROW_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
CLAIM = ".claim-"
"""Beginning of the names of objects that mark a claimed folder; they are never listed."""


class Storage(Protocol):
    """Files below a root folder."""

    root: str
    """Absolute path or URI, without a slash at its end."""

    def read(self, path: str) -> bytes:
        """The file's content. Raises FileNotFoundError."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Put the file, as a whole or not at all, replacing what was there; missing folders are made."""
        ...

    def upload(self, source: Path, path: str) -> str:
        """Copy a local file in; returns the sha256 of what was copied. An interrupted copy may leave a part of the
        file."""
        ...

    def download(self, path: str, target: Path) -> str:
        """Copy a file out to a local path; returns its sha256. Raises FileNotFoundError."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Give a file that never changes a second name, by a hard link or the store's own copy where there is one.
        Raises FileNotFoundError."""
        ...

    def digest(self, path: str) -> str:
        """The file's sha256. Raises FileNotFoundError."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        ...

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder, sorted; none when it doesn't exist."""
        ...

    def files(self, path: str) -> list[str]:
        """Paths of all files below a folder, relative to it, sorted; none when it doesn't exist."""
        ...

    def claim(self, path: str) -> bool:
        """Make a folder that must not exist yet; True for at most one caller until it is removed, even when several
        try at once.

        On an object store callers that try at the same moment may all get False (each sees the others' marks and
        gives way).
        """
        ...

    def lock(self, path: str) -> contextlib.AbstractContextManager[None]:
        """Hold other processes off while a file is read and rewritten. Object stores have no lock: the last writer
        wins there."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; nothing where there is none."""
        ...

    def remove(self, path: str) -> None:
        """Remove a folder and all below it. On an object store a claimed folder keeps its mark, so it is never
        claimed again."""
        ...


def open_storage(root: str) -> Storage:
    """The storage of a local path or URI. Raises InputError for a scheme that nothing installed can read."""
    scheme, separator, rest = root.partition("://")
    if not separator:
        return Local(root)
    if scheme == "file":
        return Local(rest)
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    root = f"{scheme}://{rest.rstrip('/')}"
    if scheme in PYARROW_SCHEMES:
        return Remote(root, *FileSystem.from_uri(root))
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(root, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        allowed = ", ".join(f"{name}://" for name in PYARROW_SCHEMES)
        raise InputError(
            f"{root} can't be opened: {error}; allowed: a local path, {allowed} or a scheme fsspec knows"
        ) from error
    return Remote(root, PyFileSystem(FSSpecHandler(filesystem)), path)


def is_local(root: str) -> bool:
    return "://" not in root or root.startswith("file://")


class Local:
    """A folder on this machine or on a file system that all nodes share."""

    def __init__(self, root: str) -> None:
        self.root = str(Path(root).absolute())

    def read(self, path: str) -> bytes:
        return self._at(path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                _to_disk(file)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _folder_to_disk(target.parent)

    def upload(self, source: Path, path: str) -> str:
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, target.open("xb") as writer:
            digest = _copy(reader, writer)
            _to_disk(writer)
        _folder_to_disk(target.parent)
        return digest

    def download(self, path: str, target: Path) -> str:
        with self._at(path).open("rb") as reader, target.open("wb") as writer:
            return _copy(reader, writer)

    def copy(self, source: str, target: str) -> None:
        self._at(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self._at(source), self._at(target))
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links, or a file that has too many
            shutil.copyfile(self._at(source), self._at(target))

    def digest(self, path: str) -> str:
        with self._at(path).open("rb") as reader:
            return _copy(reader, None)

    def exists(self, path: str) -> bool:
        return self._at(path).is_file()

    def folders(self, path: str) -> list[str]:
        folder = self._at(path)
        return sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []

    def files(self, path: str) -> list[str]:
        folder = self._at(path)
        return sorted(child.relative_to(folder).as_posix() for child in folder.rglob("*") if child.is_file())

    def claim(self, path: str) -> bool:
        folder = self._at(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            return False
        _folder_to_disk(folder.parent)
        return True

    @contextlib.contextmanager
    def lock(self, path: str) -> Iterator[None]:
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f".{target.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def delete(self, path: str) -> None:
        self._at(path).unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        shutil.rmtree(self._at(path))

    def _at(self, path: str) -> Path:
        return Path(self.root, path)


class Remote:
    """A prefix of an object store, reached through pyarrow.fs."""

    def __init__(self, root: str, filesystem: FileSystem, base: str) -> None:
        self.root = root
        self._filesystem = filesystem
        self._base = base.rstrip("/")

    def read(self, path: str) -> bytes:
        with self._filesystem.open_input_stream(self._at(path)) as file:
            return bytes(file.read())

    def write(self, path: str, content: bytes) -> None:
        with self._filesystem.open_output_stream(self._at(path)) as file:
            file.write(content)

    def upload(self, source: Path, path: str) -> str:
        with source.open("rb") as reader, self._filesystem.open_output_stream(self._at(path)) as writer:
            return _copy(reader, writer)

    def download(self, path: str, target: Path) -> str:
        with self._filesystem.open_input_stream(self._at(path)) as reader, target.open("wb") as writer:
            return _copy(reader, writer)

    def copy(self, source: str, target: str) -> None:
        try:
            self._filesystem.copy_file(self._at(source), self._at(target))
        except FileNotFoundError:
            raise
        except OSError:  # S3 copies no object of more than 5 GB
            with (
                self._filesystem.open_input_stream(self._at(source)) as reader,
                self._filesystem.open_output_stream(self._at(target)) as writer,
            ):
                _copy(reader, writer)

    def digest(self, path: str) -> str:
        with self._filesystem.open_input_stream(self._at(path)) as reader:
            return _copy(reader, None)

    def exists(self, path: str) -> bool:
        from pyarrow.fs import FileType

        return bool(self._filesystem.get_file_info(self._at(path)).type == FileType.File)

    def folders(self, path: str) -> list[str]:
        from pyarrow.fs import FileType

        return sorted(info.base_name for info in self._list(path, recursive=False) if info.type == FileType.Directory)

    def files(self, path: str) -> list[str]:
        return sorted(name for name in self._all_files(path) if not PurePath(name).name.startswith(CLAIM))

    def claim(self, path: str) -> bool:
        """Put a mark, then list: whoever finds other marks or files gives way.

        Of two callers that both found themselves alone, each would have listed before the other's put had ended; but
        each lists after its own put: a contradiction, as long as a listing shows every put that has ended.
        """
        if self._all_files(path):
            return False
        mark = f"{CLAIM}{uuid.uuid4().hex}"
        self.write(f"{path}/{mark}", b"")
        return self._all_files(path) == [mark]

    def lock(self, path: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def delete(self, path: str) -> None:
        if self.exists(path):
            self._filesystem.delete_file(self._at(path))

    def remove(self, path: str) -> None:
        for name in self.files(path):
            self._filesystem.delete_file(self._at(f"{path}/{name}"))

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}".rstrip("/")

    def _all_files(self, path: str) -> list[str]:
        from pyarrow.fs import FileType

        start = len(self._at(path)) + 1
        return [info.path[start:] for info in self._list(path, recursive=True) if info.type == FileType.File]

    def _list(self, path: str, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        return list(
            self._filesystem.get_file_info(FileSelector(self._at(path), allow_not_found=True, recursive=recursive))
        )


def _copy(reader: Any, writer: Any | None) -> str:
    """Copy all bytes (nowhere if writer is None); their sha256."""
    digest = hashlib.sha256()
    while chunk := reader.read(CHUNK_BYTES):
        digest.update(chunk)
        if writer is not None:
            writer.write(chunk)
    return digest.hexdigest()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
