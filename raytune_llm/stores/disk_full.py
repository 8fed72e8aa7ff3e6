"""A full disk, recognised among the many errors that it causes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raytune_llm.errors import InputError
from raytune_llm.stores.storage import is_local

FULL_BYTES = 1 << 20
"""A disk with less than this is full: not even a report fits."""
FULL = (errno.ENOSPC, errno.EDQUOT)
REASONS = tuple(map(os.strerror, FULL))


@contextmanager
def explain_disk_full(home: str, run: str) -> Iterator[None]:
    """Raise errors inside that a full disk caused as InputError; all others pass unchanged."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise_if_disk_full(error, home, run)
        raise


def raise_if_disk_full(error: Exception, home: str, run: str) -> None:
    """Raise InputError when the error, or a worker's error that it quotes, is that of a full disk, or when home is
    full. `home`: folder or URI of the job's runs; `run`: the run's name, which resumes it."""
    reported = any(reason in str(error) for reason in REASONS)
    if reported or is_full(home):
        raise InputError(
            f"no space left in home={home}, or in a worker's temporary folder: the run stopped and what was stored "
            f"before is intact; free some space, then the same command with run={run} resumes from its last checkpoint"
        ) from error


def raise_if_no_room(error: OSError, what: str) -> None:
    """Raise InputError when the error, one of a temporary file, is that of a full folder, or that there is none to
    write to. `what`: what the file is for, in the plural."""
    if isinstance(error, FileNotFoundError):
        raise InputError(
            f"no temporary folder for {what}: {error.strerror}; set TMPDIR to a folder that can be written to"
        ) from error
    if error.errno in FULL:
        raise InputError(
            f"no room for {what} in the temporary folder {tempfile.gettempdir()} ({error.strerror}): free some space "
            "there, or set TMPDIR to a folder of another disk"
        ) from error


def is_full(home: str) -> bool:
    """Whether home is a folder of this machine, there or yet to be made, on a full disk."""
    if not is_local(home):
        return False
    path = Path(home.removeprefix("file://")).absolute()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(nearest).free < FULL_BYTES
