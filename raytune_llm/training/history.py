"""What a trial has reported so far, kept in its checkpoint as history.json so that a resumed trial continues it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raytune_llm.stores.storage import open_storage
from raytune_llm.training.config import EarlyStopping
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.stopping import diverged, out_of_patience

FILE = "history.json"


@dataclass
class History:
    """The reports of one trial, in order of their steps."""

    objective: Objective
    reports: list[Report] = field(default_factory=list)
    seconds: float = 0.0
    """Time spent training over all attempts."""
    stopped: str | None = None
    """Why the method itself ended the training after the last report, where it did."""

    @property
    def best(self) -> Report:
        found = self.objective.best(self.reports)
        assert found is not None, "no report yet"
        return found

    @property
    def last(self) -> Report:
        return self.reports[-1]

    @property
    def last_step(self) -> int:
        """The step of the last report, 0 before the first."""
        return self.last.step if self.reports else 0

    def add(self, step: int, metrics: dict[str, float], *, stopped: str | None = None) -> Report:
        """Append a report; one at a step already there replaces it and what followed (work redone after a crash). One
        that isn't finite, or at which the method itself ends the training, counts as the worst: it is never kept."""
        self.reports = [report for report in self.reports if report.step < step]
        metric = self.objective.metric
        sound = math.isfinite(metrics[metric]) and stopped is None
        self.stopped = stopped
        self.reports.append(Report(step=step, metrics=metrics if sound else metrics | {metric: self.objective.worst}))
        return self.last

    def why_stop(self, stopping: EarlyStopping) -> str | None:
        """Why the trial should stop now, or None."""
        metric = self.objective.metric
        if self.stopped is not None:
            return self.stopped
        if diverged([report.metrics[metric] for report in self.reports]):
            return (
                f"diverged: {metric} is not finite at step {self.last.step}; "
                "try a smaller tuning.learning_rate_multiplier"
            )
        if out_of_patience([self.objective.cost_of(report) for report in self.reports], stopping):
            return "early stopping"
        return None

    def why_ended(self, stopping: EarlyStopping, steps: int) -> str | None:
        """Why a trial of so many steps is over, or None while it isn't."""
        return self.why_stop(stopping) or ("complete" if self.last_step >= steps else None)

    def save(self, folder: Path) -> None:
        content = {
            "metric": self.objective.metric,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "reports": [asdict(report) for report in self.reports],
        }
        (folder / FILE).write_text(json.dumps(content))

    @classmethod
    def load(cls, folder: Path | str, objective: Objective) -> History:
        """That of a checkpoint, a folder or a URI."""
        content = json.loads(open_storage(str(folder)).read(FILE))
        return cls(
            objective,
            reports=[Report(**report) for report in content["reports"]],
            seconds=content["seconds"],
            stopped=content.get("stopped"),
        )


def read_reports(checkpoint: str) -> list[Report]:
    """The reports in a checkpoint, a folder or a URI."""
    return [Report(**report) for report in json.loads(open_storage(checkpoint).read(FILE))["reports"]]


def stored_step(checkpoint: Path | str | None) -> int:
    """The step of a checkpoint's last report, 0 without a checkpoint."""
    reports = [] if checkpoint is None else read_reports(str(checkpoint))
    return reports[-1].step if reports else 0
