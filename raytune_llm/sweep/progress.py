"""What a running sweep shows of itself: on a terminal a view redrawn in place, in a log a table now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback

from raytune_llm.sweep.camera import Camera
from raytune_llm.sweep.view import draw, plain_text
from raytune_llm.training.screen import Line
from raytune_llm.training.terminal import LiveRegion

LIVE_SECONDS = 0.5
"""Between two snapshots for a terminal."""
LOG_SECONDS, MOST_LOG_SECONDS = 20.0, 300.0
"""Between two tables in a log: at first, and at most."""
LOG_SHARE = 1 / 30
"""Of the sweep's time so far, as long as that is between the two."""


class Shown(TrialProgressCallback):
    """Shows a sweep, in place of what Ray Tune prints."""

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self.camera = camera
        self._news = False

    def setup(self, *args: Any, **info: Any) -> None:
        self.camera.begin()
        self._shown_at = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.camera.reported(trial.trial_id, result)
        self._news = True

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._news = True

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.camera.failed.add(trial.trial_id)
        self._news = True
        print(f"trial {trial.trial_id} failed; see {trial.path}/error.txt", flush=True)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self._shown_at >= self.period_seconds(now):
            self._shown_at = now
            self.show()

    def period_seconds(self, now: float) -> float:
        """Between two times that it is shown."""
        raise NotImplementedError

    def show(self) -> None:
        """Show it as it is now."""
        raise NotImplementedError


class LogLines(Shown):
    """For a log: prints a short table when there is something new, the longer the sweep the less often."""

    def period_seconds(self, now: float) -> float:
        return max(LOG_SECONDS, min(MOST_LOG_SECONDS, LOG_SHARE * (now - self.camera.started)))

    def show(self) -> None:
        if self._news:
            self._news = False
            print(plain_text(self.camera.take()), flush=True)


class LiveView(Shown):
    """For a terminal: what `draw` shows is as new as the last turn of Ray Tune's loop."""

    def setup(self, *args: Any, **info: Any) -> None:
        super().setup(*args, **info)
        self.show()

    def period_seconds(self, now: float) -> float:
        return LIVE_SECONDS

    def show(self) -> None:
        self._shown = self.camera.take(), time.monotonic()

    def end(self) -> None:
        """Show what has become of it."""
        self._shown = self.camera.take(is_over=True), time.monotonic()

    def draw(self, width: int, height: int) -> list[Line]:
        """The last snapshot, with the time that has passed since."""
        snapshot, taken_at = self._shown
        return draw(snapshot, time.monotonic() - taken_at, width, height)


@contextmanager
def shown(camera: Camera, *, interactive: bool) -> Iterator[Shown]:
    """A callback that shows a sweep while it lasts; interactive: on a terminal."""
    if not interactive:
        yield LogLines(camera)
        return
    view = LiveView(camera)
    view.camera.begin()
    view.show()
    with LiveRegion(view.draw):
        try:
            yield view
        finally:
            view.end()
