"""Logs that a thread keeps, so that training waits for none of them.

A process has one such thread, which carries out the calls of all its runs in their order. What it hadn't carried out
when a process was killed is in metrics.jsonl, from which a resumed run completes its log. An error of the thread is
raised by the run's next call, or by `flush`, which each process calls before it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from queue import SimpleQueue

from raytune_llm.training.tracking.base import LiveRun, Run, Value

Call = Callable[[], None]


class Worker:
    """The thread, which starts with its first call."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.errors: list[BaseException] = []
        """Not raised yet."""

    def put(self, call: Call) -> None:
        """Have the call carried out after all earlier ones."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trackers", daemon=True)
                self._thread.start()
        self._calls.put(call)

    def wait(self) -> None:
        """Until all calls have been carried out. Raises the first error that nobody has raised."""
        if self._thread is not None:
            done = threading.Event()
            self.put(done.set)
            done.wait()
        if self.errors:
            first = self.errors[0]
            self.errors.clear()
            raise first

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call()
            except BaseException as error:
                self.errors.append(error)


WORKER = Worker()


class BackgroundRun:
    """A run that the thread starts and logs; nothing after the first error."""

    def __init__(self, start: Callable[[], Run]) -> None:
        self._run: Run | None = None
        self.error: BaseException | None = None
        self._put(partial(self._start, start))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._raise()
        self._put(lambda: self._started.log(step, metrics))

    def summarize(self, summary: Mapping[str, Value]) -> None:
        self._raise()
        self._put(lambda: self._started.summarize(summary) if isinstance(self._started, LiveRun) else None)

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        """Returns at once; the log has ended after `flush`."""
        self._raise()
        self._put(lambda: self._started.finish(summary, failed))

    @property
    def _started(self) -> Run:
        assert self._run is not None
        return self._run

    def _start(self, start: Callable[[], Run]) -> None:
        self._run = start()

    def _put(self, call: Call) -> None:
        def carry_out() -> None:
            if self.error is not None:
                return
            try:
                call()
            except BaseException as error:
                self.error = error
                raise

        WORKER.put(carry_out)

    def _raise(self) -> None:
        if self.error is not None:
            if self.error in WORKER.errors:
                WORKER.errors.remove(self.error)
            raise self.error


def flush() -> None:
    """Wait until all logs of this process hold what they were given. Raises what broke one of them."""
    WORKER.wait()
