"""A tracker that kills a process at a given step: failures at a known moment, not at a lucky one."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Trap:
    """Springs once, in the first trial that logs `step` or a later one."""

    marker: str
    """File that is made as it springs."""
    step: int
    pid: int | None = None
    """The process to kill with SIGKILL; None = the one that logs."""
    after: int = 0
    """Trials that must have ended before."""
    seconds: float = 0.0
    """Time before it kills: for what was reported to be stored by another process, which does so now and then."""

    def start(self, info: Any) -> Trap:
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step < self.step or len(list(Path(self.marker).parent.glob("ended-*"))) < self.after:
            return
        try:
            Path(self.marker).open("x").close()
        except FileExistsError:
            return
        time.sleep(self.seconds)
        os.kill(self.pid or os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        Path(self.marker).with_name(f"ended-{uuid.uuid4().hex}").touch()

    @property
    def sprung(self) -> bool:
        return Path(self.marker).exists()
