"""A temporary folder of this process; those of processes that were killed are removed when the next one is made."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"
"""Held in a folder for as long as its process lives, and in their parent while folders are made or removed."""


class CacheFolder:
    """Empty at first; removed by `remove`, or when the object is collected."""

    def __init__(self) -> None:
        """Raises PermissionError when the folder of this user's replicas belongs to another user."""
        parent = Path(tempfile.gettempdir(), f"raytune_llm_replicas_{os.getuid()}")
        parent.mkdir(mode=0o700, exist_ok=True)
        if parent.is_symlink() or parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{parent} belongs to another user; remove it, or set TMPDIR")
        with _locked(parent):
            for folder in parent.iterdir():
                if folder.is_dir() and _is_left_over(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            self.path = parent / uuid.uuid4().hex
            self.path.mkdir()
            self._lock = _lock(self.path, fcntl.LOCK_EX)
        self._finalizer = weakref.finalize(self, _remove, self.path, self._lock)

    def remove(self) -> None:
        self._finalizer()


def _remove(folder: Path, lock: IO[bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


def _is_left_over(folder: Path) -> bool:
    """Whether no process holds its lock."""
    try:
        _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    except BlockingIOError:
        return False
    except FileNotFoundError:  # its process has just removed it
        return True
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with _lock(folder, fcntl.LOCK_EX):
        yield


def _lock(folder: Path, operation: int) -> IO[bytes]:
    file = (folder / LOCK).open("wb")
    try:
        fcntl.flock(file, operation)
    except OSError:
        file.close()
        raise
    return file
