"""A report whose checkpoint is still to be written, from a snapshot, while the pack steps on.

`publish` makes the checkpoint of the report: history.json and, of the best step so far, best/. From then on nothing
that was reported can be lost. state/ follows by `put_state`, less often, so that writing takes at most STATE_SHARE of
the time; until then the checkpoint has that of an earlier report, or none. A trial that resumes takes the steps between
its state and its last report again, and reports none of them twice. One that has ended needs no state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raytune_llm.evaluation.metric_file import write_metric
from raytune_llm.evaluation.metrics import Metric
from raytune_llm.training import checkpoints
from raytune_llm.training.checkpoints import BEST, STATE
from raytune_llm.training.history import History
from raytune_llm.training.objective import Report
from raytune_llm.training.packed.export import SlotSaver

STATE_SHARE = 0.1
"""Of the time that writing the states of a pack may take."""


@dataclass
class StateTimer:
    """When a trial's state is to be written next."""

    clock: Callable[[], float] = time.monotonic
    due_at: float = field(default=0.0, init=False)

    def is_due(self) -> bool:
        return self.clock() >= self.due_at

    def wrote(self, seconds: float, *, num_trials: int) -> None:
        """Count a write that took so long, by one of so many trials that write in turn."""
        self.due_at = self.clock() + seconds * num_trials * (1 / STATE_SHARE - 1)


@dataclass(frozen=True, kw_only=True)
class PendingReport:
    """A trial's last report, and what its files are written from."""

    trial_id: str
    directory: str
    """Path or URI of the trial's checkpoints."""
    report: Report
    ended: str | None
    """Why this is the trial's last report, or None."""
    history: History
    """As it was at the report."""
    saver: SlotSaver | None
    """None when neither best/ nor state/ is to be written."""
    timer: StateTimer | None
    """None when state/ isn't to be written."""
    records: Metric | None
    """What trials are chosen by, on every eval record; None where it isn't kept or isn't the best so far."""
    num_trials: int
    """In the pack."""

    def store(self) -> None:
        """Write all of it, here and now."""
        self.publish()
        if self.timer is not None:
            self.put_state()

    def publish(self) -> None:
        """Write the checkpoint of the report."""
        is_best, step = self.history.best.step == self.report.step, self.report.step
        keep = [*([] if is_best else [BEST]), *([STATE] if self.ended is None else [])]
        checkpoints.publish(self.directory, step, self._write_best if is_best else self.history.save, keep=keep)
        if self.records is not None:
            write_metric(self.directory, self.records)

    def _write_best(self, folder: Path) -> None:
        assert self.saver is not None
        self.saver.save_weights(folder / BEST)
        self.history.save(folder)

    def put_state(self) -> None:
        """Bring state/ of the newest checkpoint up to this report."""
        assert self.saver is not None and self.timer is not None
        started = self.timer.clock()
        checkpoints.put_state(self.directory, self.saver.save_state)
        self.timer.wrote(self.timer.clock() - started, num_trials=self.num_trials)
