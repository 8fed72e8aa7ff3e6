"""Ctrl-C while Ray runs trials: it raises KeyboardInterrupt, as everywhere, and the run is resumed later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Ray Train and Ray Tune handle the process's Ctrl-C, and keep doing so when they have ended: an endpoint that is
    started after them would not stop. Ray Train ends a run's workers then, and leaves the process with status 0, as if
    all were well; this is a KeyboardInterrupt here."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    except SystemExit as error:
        if error.code != 0:
            raise
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)
