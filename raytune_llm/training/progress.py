"""A trial's progress: a bar with time left on a terminal, a line per evaluation in a log."""

from __future__ import annotations

import time
from typing import Any

from raytune_llm.compat import RayProgressBar


class Progress:
    """Called after each step; draws through Ray, so that it also works in a worker on another machine."""

    def __init__(self, name: str, steps: int, *, shown: bool, bar: bool):
        self.name, self.steps, self.shown = name, steps, shown
        self.started, self.first_step = time.monotonic(), -1
        self.bar: Any = None
        if shown and bar:
            self.bar = RayProgressBar(steps, name)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if self.first_step < 0:
            self.started, self.first_step = time.monotonic(), step
        if self.bar is not None and not metrics:
            self.bar.move_to(step)
        if self.shown and metrics:
            print(self.line(step, metrics), flush=True)

    def line(self, step: int, metrics: dict[str, float]) -> str:
        """One line of an evaluation: step, losses, speed, time left."""
        done = step - self.first_step
        rate = done / max(1e-9, time.monotonic() - self.started)
        left = f"{(self.steps - step) / rate:.0f} s left" if done and step < self.steps else ""
        shown = [
            f"{key} {metrics[key]:.4f}"
            for key in ("train/loss", *sorted(k for k in metrics if k.startswith("eval/")))
            if key in metrics
        ]
        return f"step {step}/{self.steps}  " + "  ".join([*shown, f"{rate:.1f} steps/s" if done else "", left]).rstrip()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
