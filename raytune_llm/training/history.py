"""What a trial has reported so far, kept in its checkpoint as history.json so that a resumed trial goes on with it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from raytune_llm.evaluation.terms import lower_is_better
from raytune_llm.training.config import EarlyStopping, Report
from raytune_llm.training.stopping import best_index, diverged, out_of_patience

FILE = "history.json"


@dataclass
class History:
    """The reports of one trial, in order of their steps."""

    metric: str
    reports: list[Report] = field(default_factory=list)
    seconds: float = 0.0
    """Time spent training over all attempts."""
    stopped: str | None = None
    """Why the method itself ended the training after the last report, where it did."""

    @property
    def values(self) -> list[float]:
        return [report.metrics[self.metric] for report in self.reports]

    @property
    def best(self) -> Report:
        return self.reports[best_index(self.values, lower_is_better(self.metric))]

    @property
    def last(self) -> Report:
        return self.reports[-1]

    def add(self, step: int, metrics: dict[str, float], *, stopped: str | None = None) -> Report:
        """Append a report; one at a step already there replaces it and what followed (work redone after a crash). One
        that isn't finite, or at which the method itself ends the training, counts as the worst: it is never kept."""
        self.reports = [report for report in self.reports if report.step < step]
        worst = math.inf if lower_is_better(self.metric) else -math.inf
        value = metrics[self.metric]
        sound = math.isfinite(value) and stopped is None
        scored = {**metrics, self.metric: value if sound else worst}
        self.stopped = stopped
        self.reports.append(Report(step=step, metrics=scored))
        return self.last

    def why_stop(self, stopping: EarlyStopping) -> str | None:
        """Why the trial should stop now, or None."""
        if self.stopped is not None:
            return self.stopped
        if diverged(self.values):
            found = f"{self.metric} is not finite at step {self.last.step}"
            return f"diverged: {found}; try a smaller tuning.learning_rate_multiplier"
        if out_of_patience(self.values, stopping, lower_is_better(self.metric)):
            return "early stopping"
        return None

    def up_to(self, step: int) -> Report | None:
        """The best report at or before a step: what a trial of that many steps would have kept."""
        early = [report for report in self.reports if report.step <= step]
        if not early:
            return None
        return early[best_index([report.metrics[self.metric] for report in early], lower_is_better(self.metric))]

    def save(self, folder: Path) -> None:
        content = {
            "metric": self.metric,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "reports": [asdict(report) for report in self.reports],
        }
        (folder / FILE).write_text(json.dumps(content))

    @classmethod
    def load(cls, folder: Path) -> History:
        return cls.read((folder / FILE).read_bytes())

    @classmethod
    def read(cls, stored: bytes) -> History:
        """From the content of a history.json."""
        content = json.loads(stored)
        reports = [Report(**report) for report in content["reports"]]
        return cls(
            metric=content["metric"], reports=reports, seconds=content["seconds"], stopped=content.get("stopped")
        )
