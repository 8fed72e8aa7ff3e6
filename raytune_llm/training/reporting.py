"""A trial's reports, built once for every backend: metrics, what is best so far, why it ends, checkpoint, log."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from raytune_llm.evaluation.terms import DRIFT
from raytune_llm.training.config import TrialSpec
from raytune_llm.training.history import History
from raytune_llm.training.objective import ANSWER_SECONDS, DRIFT_SECONDS, Report
from raytune_llm.training.tracking.base import Run


class Saver(Protocol):
    """Writes a trial as it is now, each time into a folder that isn't there yet."""

    def save_state(self, folder: Path) -> None:
        """What resuming needs."""
        ...

    def save_weights(self, folder: Path) -> None:
        """The adapter or model."""
        ...


class LiveTrial:
    """A trial while it trains, on any backend: its reports, its log and its checkpoint.

    Its folder is a checkpoint: state/ (what resuming needs), best/ (the adapter or model of the best step so far) and
    history.json (all reports). A pack's trial has none: its pack writes checkpoints while it trains on.
    """

    def __init__(
        self,
        spec: TrialSpec,
        run: Run,
        folder: Path | None,
        *,
        num_gpus: float,
        resume: Path | str | None = None,
    ) -> None:
        """`folder`: local, brought up to date with every report that has a saver. `resume`: a checkpoint to continue
        from, a folder or, without a folder of its own, a URI."""
        self.spec, self.config, self.run, self.folder = spec, spec.config, run, folder
        self._num_gpus = num_gpus
        self._train_losses: list[float] = []
        self.is_hastened = False
        """Whether it reports at its next step, whichever that is."""
        self.answer_seconds = 0.0
        """Of the training's seconds, those in which it answered eval records."""
        self.drift_seconds = 0.0
        """The same of measuring drift."""
        self.history = History(spec.config.objective)
        if resume is not None:
            self.history = History.load(resume, spec.config.objective)
            self.answer_seconds = self.history.last.metrics.get(ANSWER_SECONDS, 0.0)
            self.drift_seconds = self.history.last.metrics.get(DRIFT_SECONDS, 0.0)
            if folder is not None:
                shutil.copytree(Path(resume, "best"), folder / "best", dirs_exist_ok=True)

    @property
    def ended(self) -> str | None:
        """Why the trial is over, or None while it isn't."""
        return self.history.why_ended(self.config.tuning.early_stopping, self.config.tuning.steps)

    def is_due(self, step: int) -> bool:
        """Whether the trial reports after so many optimizer steps; steps up to the last report, which a resumed trial
        may repeat, have been reported."""
        if step <= self.history.last_step:
            return False
        tuning = self.config.tuning
        is_due = step % tuning.eval_every == 0 or step in self.spec.milestones or step >= tuning.steps
        return is_due or self.is_hastened

    def add_loss(self, loss: float) -> None:
        """Count a training loss towards the next report's train/loss, which is their mean."""
        self._train_losses.append(loss)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a training step, each metric as train/NAME."""
        self.run.log(step, {f"train/{name}": value for name, value in metrics.items()})

    def report(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        seconds: float,
        saver: Saver | None,
        stopped: str | None = None,
    ) -> Report:
        """Build the report of an evaluation, bring the checkpoint's folder up to date and log it.

        `seconds`: of training over all attempts; `stopped`: why the method itself ends the training; `saver`: None
        where something else keeps the checkpoint.
        """
        train_loss = math.fsum(self._train_losses) / max(1, len(self._train_losses))
        self._train_losses.clear()
        cost = {"time/seconds": seconds, "cost/gpu_hours": self._num_gpus * seconds / 3600}
        if self.config.answering is not None:
            cost[ANSWER_SECONDS] = self.answer_seconds
        if DRIFT in metrics:
            cost[DRIFT_SECONDS] = self.drift_seconds
        self.is_hastened = False
        report = self.history.add(step, {**metrics, "train/loss": train_loss, **cost}, stopped=stopped)
        self.history.seconds = seconds
        if saver is not None:
            assert self.folder is not None
            self._write_checkpoint(self.folder, step, saver)
        self.run.log(step, report.metrics)
        return report

    def _write_checkpoint(self, folder: Path, step: int, saver: Saver) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "state", ignore_errors=True)
        saver.save_state(folder / "state")
        if self.history.best.step == step:
            shutil.rmtree(folder / "best", ignore_errors=True)
            saver.save_weights(folder / "best")
        self.history.save(folder)
