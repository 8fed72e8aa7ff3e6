"""TensorBoard event files in the run's folder: `tensorboard --logdir HOME/runs` shows every run of every sweep, and its
HPARAMS tab the knobs of each with the metrics of its best report, best/NAME.

Written with tensorboard's own event writer, without torch or tensorflow. Each process writes a new file, whose first
event makes TensorBoard discard those steps of earlier files that are logged again. Not supported: object stores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.stores.storage import is_local
from raytune_llm.training.tracking.base import Run, RunInfo, Value

BEST = "best/"
"""What begins the names of the best report's metrics."""


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Logs scalars and knobs to TensorBoard."""

    flush_seconds: int
    """Longest time a logged value waits before it is written; ≥ 1."""

    def start(self, info: RunInfo) -> Run:
        if not is_local(info.directory):
            raise InputError(
                f"tracking=tensorboard can't write to {info.directory}, only to local or shared folders; "
                "choose another tracker or another home="
            )
        try:
            from tensorboard.compat.proto.event_pb2 import SessionLog
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise InputError(
                "tracking=tensorboard needs the package tensorboard; install it with: pip install tensorboard"
            ) from error
        run = TensorBoardRun(EventFileWriter(info.directory, flush_secs=self.flush_seconds))
        first = info.from_step + 1 if info.resumed else 0
        run.add(first, session_log=SessionLog(status=SessionLog.START))
        knobs = {key: value for key, value in info.config.items() if isinstance(value, bool | int | float | str)}
        run.add(first, summary=hparams_pb(knobs, trial_id=f"{info.group}/{info.name}" if info.group else info.name))
        return run


class TensorBoardRun:
    """One event file."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._last_step = 0

    def add(self, step: int, **content: Any) -> None:
        """One event at a step."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._last_step = step
        self._writer.add_event(Event(step=step, wall_time=time.time(), **content))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self.add(step, summary=Summary(value=values))

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        """Log the summary's numbers as best/NAME and close the file."""
        numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, str)}
        self.log(self._last_step, {f"{BEST}{name}": value for name, value in numbers.items()})
        self._writer.close()
