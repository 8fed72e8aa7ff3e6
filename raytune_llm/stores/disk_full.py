"""A disk without space, told apart from the many errors that it shows itself as."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from raytune_llm.errors import InputError
from raytune_llm.jobs.schema import RunJob
from raytune_llm.stores.storage import is_local

FULL_BYTES = 1 << 20
"""A disk with less than this is full: not even a report fits."""
REASONS = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))


@contextmanager
def explain_disk_full(job: RunJob) -> Iterator[None]:
    """Errors inside that come of a full disk leave as InputError; all others as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise_if_disk_full(error, job)
        raise


def raise_if_disk_full(error: Exception, job: RunJob) -> None:
    """Raise InputError when the error, or what a worker said of its own, is that of a full disk, or home is full."""
    said = any(reason in str(error) for reason in REASONS)
    if said or (is_local(job.home) and shutil.disk_usage(job.home.removeprefix("file://")).free < FULL_BYTES):
        raise InputError(
            f"no space left in home={job.home}, or in a worker's temporary folder: the run stopped and what was stored "
            f"before is intact; free some space, then the same command with run={job.run} goes on from its last "
            "checkpoint"
        ) from error
