"""What a service keeps on its own machine: that it runs, and the Ray head node that it started."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raytune_llm.errors import InputError
from raytune_llm.stores.storage import is_local, open_storage


def folder_of(home: str) -> Path:
    """The folder for services of a home, for this user alone: below $XDG_CACHE_HOME, or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = open_storage(home).root
    place = os.path.realpath(place) if is_local(place) else place  # the same home by any of its names
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    folder = root / "raytune_llm" / "service" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


@contextmanager
def only_service(home: str) -> Iterator[None]:
    """Hold the home for this process's service; the hold ends with the process, however that ends. Raises InputError
    where another process of this machine has it."""
    with Path(folder_of(home), "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"home={home} has a service already: process {file.read().strip()} of this machine; end that one, or "
                "give this one another home"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
