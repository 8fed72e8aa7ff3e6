"""Ctrl-C while Ray runs trials: it raises KeyboardInterrupt, as everywhere, and the run is resumed later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ABORTED = (0, 1)
"""Status of the SystemExit with which Ray Train leaves."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ray Train handles the process's Ctrl-C, Ray Tune SIGUSR1, and both keep doing so when they have ended: an
    endpoint that is started after them would not stop. At Ctrl-C Ray Train ends the run's workers and leaves by
    SystemExit, which is a KeyboardInterrupt here; that of SIGTERM has the signal's number and passes."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    except SystemExit as error:
        if error.code not in ABORTED:
            raise
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)
