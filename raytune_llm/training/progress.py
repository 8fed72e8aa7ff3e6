"""A train run's progress: on a terminal redrawn in place, in a log a line per evaluation.

The trial runs in a worker, on any machine, and Ray brings what it prints to the driver. So for a terminal it also
prints how far it is, as lines that the driver takes for its view and shows to nobody.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from raytune_llm.stores.json import to_json
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.curves import curve_line, scale_of
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.screen import Line, Piece, bar, duration, short_number, wrapped
from raytune_llm.training.terminal import LiveRegion

MARK = ":raytune_llm_step:"
"""Begins what the driver takes."""
PERIOD_SECONDS = 0.5
"""Shortest time between two such lines without metrics."""
BAR_WIDTH = 30


class Progress:
    """Called after each step and each evaluation, in the worker."""

    def __init__(self, steps: int, *, shown: bool, live: bool):
        """shown: whether anything is; live: whether the driver draws a view."""
        self.steps, self.shown, self.live = steps, shown, live
        self.started, self.first_step, self._marked_at = time.monotonic(), -1, 0.0

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if self.first_step < 0:
            self.started, self.first_step = now, step
        if not self.shown:
            return
        if self.live and (metrics or now - self._marked_at >= PERIOD_SECONDS):
            self._marked_at = now
            found = {"step": step, "metrics": metrics, "rate": self.rate(step, now)}
            print(f"{MARK}{to_json(found)}", flush=True)
        if metrics:
            print(self.line(step, metrics), flush=True)

    def rate(self, step: int, now: float) -> float:
        """Steps a second, evaluations included."""
        return (step - self.first_step) / max(1e-9, now - self.started)

    def line(self, step: int, metrics: dict[str, float]) -> str:
        """One line of an evaluation: step, losses, speed, time left."""
        rate = self.rate(step, time.monotonic())
        left = f"{(self.steps - step) / rate:.0f} s left" if rate and step < self.steps else ""
        shown = [
            f"{key} {metrics[key]:.4f}"
            for key in ("train/loss", *sorted(k for k in metrics if k.startswith("eval/")))
            if key in metrics
        ]
        return f"step {step}/{self.steps}  " + "  ".join([*shown, f"{rate:.1f} steps/s" if rate else "", left]).rstrip()


@dataclass
class TrainView:
    """The view of one trial, in the driver."""

    title: str
    """Name and run."""
    steps: int
    objective: Objective
    num_devices: float
    """GPUs that it holds; 0 where it computes on CPUs."""
    usd_per_hour: float | None
    """Of a device, if known."""
    started: float = field(default_factory=time.monotonic)
    is_over: bool = False
    step: int = 0
    rate: float = 0.0
    train_loss: float | None = None
    reports: list[Report] = field(default_factory=list)

    @classmethod
    def of(cls, config: TrialConfig, *, use_gpu: bool) -> TrainView:
        """Of a run that begins."""
        scaling = config.scaling
        return cls(
            title=f"{config.name}/{config.run}",
            steps=config.tuning.steps,
            objective=config.objective,
            num_devices=scaling.num_workers * scaling.gpus_per_worker if use_gpu else 0.0,
            usd_per_hour=scaling.usd_per_hour,
        )

    def takes(self, line: str) -> bool:
        """Whether a line that a worker has printed is for this view, which then shows it."""
        _, mark, content = line.partition(MARK)
        if not mark:
            return False
        found = json.loads(content)
        metrics = {name: float(value) for name, value in found["metrics"].items()}
        self.step, self.rate = found["step"], found["rate"]
        if metrics:
            self.train_loss = metrics.get("train/loss")
            self.reports.append(Report(step=self.step, metrics=metrics))
        return True

    def draw(self, width: int, height: int) -> list[Line]:
        """As it is now: three or four lines."""
        now = time.monotonic() - self.started
        lines = wrapped([Piece(f"{self.title} train", "bold")], width)
        lines += wrapped([*self._progress(), *self._spent(now)], width)
        if self.reports:
            lines += wrapped(self._metrics(width), width)
        return lines[: max(1, height)]

    def _progress(self) -> list[Piece]:
        full = bar(self.step / self.steps, BAR_WIDTH)
        parts = [Piece(f"{full} {self.step}/{self.steps}", "green" if self.step >= self.steps else "cyan")]
        if self.rate > 0:
            parts.append(Piece(f"{short_number(self.rate)} steps/s"))
            if self.step < self.steps and not self.is_over:
                parts.append(Piece(f"{duration((self.steps - self.step) / self.rate)} left"))
        return parts

    def _spent(self, seconds: float) -> list[Piece]:
        hours = seconds / 3600
        parts = [Piece(f"{duration(seconds)} so far")]
        if self.num_devices:
            parts.append(Piece(f"{short_number(self.num_devices * hours)} GPU hours"))
        if self.usd_per_hour is not None:
            parts.append(Piece(f"${self.usd_per_hour * (self.num_devices or 1) * hours:.2f}"))
        return parts

    def _metrics(self, width: int) -> list[Piece]:
        metric, best = self.objective.metric, self.objective.best(self.reports)
        assert best is not None
        values = [report.metrics[metric] for report in self.reports]
        curve = curve_line(values, scale_of(values, values[:1], self.objective), self.objective, max(8, width // 4))
        parts = [] if self.train_loss is None else [Piece(f"train/loss {self.train_loss:.4g}")]
        parts += [Piece(f"{metric} {values[-1]:.4g}"), Piece(curve, "cyan")]
        return [*parts, Piece(f"best {best.metrics[metric]:.4g} at step {best.step}", "bold green")]


@contextmanager
def shown(config: TrialConfig, *, use_gpu: bool, interactive: bool) -> Iterator[None]:
    """Draw a run while it lasts; interactive: on a terminal, else nothing is drawn."""
    if not interactive:
        yield
        return
    view = TrainView.of(config, use_gpu=use_gpu)
    with LiveRegion(view.draw, view.takes):
        try:
            yield
        finally:
            view.is_over = True
