"""What Ray Data says of itself, kept out of a job's output; its own log file has it all the same."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray.data

RESTART = b"has constructor arguments in the object store and max_restarts > 0"
"""What Ray's core prints of every actor of a pool that Ray Data starts: nothing of it can be set, and a lost actor's
questions are asked again."""


def quiet() -> None:
    """No bars and no messages of Ray Data in this process. Importing ray.data sets its loggers up, so it comes
    first."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def without_line(part: bytes) -> Iterator[None]:
    """Lines with this part don't reach the standard error of the process, not even from C++; all others do, whole."""
    sys.stderr.flush()
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if part not in line:
                    os.write(kept, line)

    passing = threading.Thread(target=pass_on, daemon=True)
    passing.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        passing.join(timeout=1.0)
        if not passing.is_alive():  # it is where a process that was started meanwhile still writes there
            os.close(kept)
