"""Runs commands on the service's own head node, which is started anew when it has died.

A new head knows no job of the one before: whoever asks for an attempt finds that out, and submits it again under its
id. All processes of the one before have ended by then, so that no attempt runs twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from raytune_llm.errors import InputError
from raytune_llm.service.head import Head
from raytune_llm.service.runner import Runner, Seen

AGAIN_SECONDS = 30.0
"""Shortest time between two starts."""

T = TypeVar("T")


class OwnRunner:
    """A Runner; may be used from any thread."""

    def __init__(self, head: Head, start: Callable[[], Head]) -> None:
        """start: ends what is left of a head and starts one. Raises InputError."""
        self._head, self._runner, self._start = head, head.runner, start
        self._lock, self._begun = threading.Lock(), float("-inf")
        self.on_start: Callable[[Head], None] = lambda head: None
        """Called with each new head."""

    def submit(self, submission_id: str, command: Sequence[str], metadata: Mapping[str, str]) -> None:
        self._asked(lambda runner: runner.submit(submission_id, command, metadata))

    def seen(self, submission_id: str) -> Seen | None:
        return self._asked(lambda runner: runner.seen(submission_id))

    def stop(self, submission_id: str) -> None:
        self._asked(lambda runner: runner.stop(submission_id))

    def log(self, submission_id: str) -> str:
        return self._asked(lambda runner: runner.log(submission_id))

    def devices(self) -> float:
        return self._asked(lambda runner: runner.devices())

    def has_gpu(self) -> bool:
        return self._asked(lambda runner: runner.has_gpu())

    def _asked(self, ask: Callable[[Runner], T]) -> T:
        """Raises ConnectionError in any case where the head didn't answer: the next question goes to a new one."""
        try:
            return ask(self._runner)
        except ConnectionError:
            if self._lock.acquire(blocking=False):
                try:
                    self._revive()
                finally:
                    self._lock.release()
            raise

    def _revive(self) -> None:
        """Start a head in place of one that has died. Raises ConnectionError where that fails."""
        if self._head.is_running or time.monotonic() - self._begun < AGAIN_SECONDS:
            return
        self._begun = time.monotonic()
        try:
            self._head = self._start()
        except InputError as error:
            raise ConnectionError(str(error)) from error
        self._runner = self._head.runner
        self.on_start(self._head)
