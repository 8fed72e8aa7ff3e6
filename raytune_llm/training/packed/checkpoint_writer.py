"""One thread that writes the checkpoints of a pack's trials, so that the training thread doesn't wait for a disk or an
object store.

Reports come first, in the order of their submission; states are written when no report waits. What is held in memory
is bounded: a trial takes no step to its next report before the last one is published, so it has at most one report
here, and at most one state, of which a newer one takes the place; one more snapshot is being written. A writer that is
slower than training therefore makes the trials wait before their next report, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raytune_llm.training.packed.pending_report import PendingReport


class CheckpointWriter:
    """`published` is called after a report's checkpoint is whole; `failed` with the first error, which ends the
    writer: what was still to be written is dropped. Both are called by the writer's thread."""

    def __init__(self, published: Callable[[PendingReport], None], failed: Callable[[BaseException], None]) -> None:
        self._published, self._failed = published, failed
        self._reports: dict[str, PendingReport] = {}
        self._states: dict[str, PendingReport] = {}
        self._writing: str | None = None
        self._changed = threading.Condition()
        self._closing = self._is_dead = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, pending: PendingReport) -> None:
        """Have a report published, then its state written; returns at once. After an error it is dropped."""
        with self._changed:
            if self._is_dead:
                return
            assert pending.trial_id not in self._reports, "a trial reports again before its last report is published"
            if pending.timer is not None:
                self._states.pop(pending.trial_id, None)
            self._reports[pending.trial_id] = pending
            self._changed.notify_all()

    def flush(self, trial_id: str) -> None:
        """Return when nothing of a trial is left to write; it goes before the others."""
        with self._changed:
            for waiting in (self._reports, self._states):
                if trial_id in waiting:
                    first = {trial_id: waiting.pop(trial_id)}
                    others = dict(waiting)
                    waiting.clear()
                    waiting.update(first | others)
            self._changed.wait_for(lambda: self._is_dead or not self._holds(trial_id))

    def close(self) -> None:
        """Write what is left and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _holds(self, trial_id: str) -> bool:
        return trial_id in self._reports or trial_id in self._states or trial_id == self._writing

    def _run(self) -> None:
        try:
            while self._write_next():
                pass
        except BaseException as error:
            with self._changed:
                self._is_dead = True
                self._reports.clear()
                self._states.clear()
                self._changed.notify_all()
            self._failed(error)

    def _write_next(self) -> bool:
        """Publish a report or write a state; False when all is written and the writer closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._reports or self._states)
            waiting = self._reports or self._states
            if not waiting:
                return False
            is_report = waiting is self._reports
            self._writing = next(iter(waiting))
            pending = waiting.pop(self._writing)
        if is_report:
            pending.publish()
            self._published(pending)
        else:
            pending.put_state()
        with self._changed:
            if is_report and pending.timer is not None and pending.timer.is_due():
                self._states[pending.trial_id] = pending
            self._writing = None
            self._changed.notify_all()
        return True
