"""Arrays that grow at their end: in memory, or in the files of a folder, which are memory-mapped once they are whole.

A disk that fills up costs nothing but memory: what was written is read back, and the arrays grow on in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

META = "meta.json"
"""Written last: dtype, shape and sha256 of each array, and what the owner adds."""
CHUNK_BYTES = 1 << 22


class Corrupt(ValueError):
    """A folder doesn't hold what its META says."""


class GrowingArrays:
    """Arrays by name, appended to along their first axis."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: an empty one, or None for memory."""
        self._folder = folder
        self._files: dict[str, _GrowingFile] = {}
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self.failure: OSError | None = None
        """Why the folder isn't used any more."""

    def append(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Append each array to the one of its name: of the same dtype, and of its shape but for the first axis."""
        for name, array in arrays.items():
            if self._folder is None or not self._write(name, array):
                self._parts.setdefault(name, []).append(array)

    def finish(self, about: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """The whole arrays. A folder is then complete: `read_arrays` finds them, and `about`."""
        if self._folder is not None:
            try:
                specs = {name: file.close() for name, file in self._files.items()}
                text = json.dumps({"arrays": specs, "about": about})
                (self._folder / META).write_text(json.dumps({"meta": text, "sha256": _digest(text)}))
                return {name: _mapped(self._folder / name, spec) for name, spec in specs.items()}
            except OSError as error:
                self._leave_folder(error)
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def _write(self, name: str, array: NDArray[Any]) -> bool:
        """Whether the array is in its file; if not, all files are in memory."""
        assert self._folder is not None
        try:
            if name not in self._files:
                self._files[name] = _GrowingFile(self._folder / name, array)
            self._files[name].append(array)
        except OSError as error:
            self._leave_folder(error)
            return False
        return True

    def _leave_folder(self, error: OSError) -> None:
        self.failure, self._folder = error, None
        self._parts = {name: [file.read_back()] for name, file in self._files.items()}
        self._files = {}


class _GrowingFile:
    """The items of one array, end to end, without a header."""

    def __init__(self, path: Path, like: NDArray[Any]) -> None:
        self._stream: IO[bytes] = path.open("w+b", buffering=0)
        self._dtype, self._item, self._rows = like.dtype, like.shape[1:], 0
        self._digest = hashlib.sha256()

    def append(self, array: NDArray[Any]) -> None:
        assert array.dtype == self._dtype and array.shape[1:] == self._item
        data = memoryview(array.tobytes())
        self._digest.update(data)
        while data:
            data = data[self._stream.write(data) :]
        self._rows += len(array)

    def close(self) -> dict[str, Any]:
        """What META says of it."""
        self._stream.close()
        return {"dtype": self._dtype.str, "shape": [self._rows, *self._item], "sha256": self._digest.hexdigest()}

    def read_back(self) -> NDArray[Any]:
        """The rows that were appended whole."""
        with open(self._stream.name, "rb") as stream:
            flat = np.fromfile(stream, self._dtype, count=self._rows * math.prod(self._item))
        self._stream.close()
        return flat.reshape(self._rows, *self._item)


def read_arrays(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The memory-mapped, read-only arrays of a complete folder, each checked against its hash; what its owner added.

    Raises:
        OSError: a file is missing or unreadable.
        Corrupt: a file was changed.
    """
    try:
        outer = json.loads((folder / META).read_text())
        text = outer["meta"]
        if outer["sha256"] != _digest(text):
            raise Corrupt(f"{folder / META} was changed")
        meta = json.loads(text)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{folder / META} can't be read: {error}") from error
    for name, spec in meta["arrays"].items():
        if _file_digest(folder / name) != spec["sha256"]:
            raise Corrupt(f"{folder / name} was changed")
    return {name: _mapped(folder / name, spec) for name, spec in meta["arrays"].items()}, meta["about"]


def _mapped(path: Path, spec: dict[str, Any]) -> NDArray[Any]:
    """The array in a file; a plain one, whose buffer travels by itself when it is pickled (a np.memmap's doesn't)."""
    shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype).reshape(shape)


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
