"""A trial's reports, built once for every backend: metrics, what is best so far, why it ends, checkpoint, log."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from raytune_llm.training.config import TrialSpec
from raytune_llm.training.history import History
from raytune_llm.training.objective import Report
from raytune_llm.training.tracking.base import Run, RunInfo, start_all
from raytune_llm.training.tracking.jsonl import JSONL


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
    history.json (all reports).
    """

    def __init__(
        self,
        spec: TrialSpec,
        run: Run,
        folder: Path,
        *,
        num_gpus: float,
        resume: Path | None = None,
    ) -> None:
        """`folder`: local, brought up to date with every report. `resume`: a checkpoint's folder to continue from."""
        self.spec, self.config, self.run, self.folder = spec, spec.config, run, folder
        self._num_gpus = num_gpus
        self._train_losses: list[float] = []
        self.history = History(spec.config.objective)
        if resume is not None:
            self.history = History.load(resume, spec.config.objective)
            shutil.copytree(resume / "best", folder / "best", dirs_exist_ok=True)

    @property
    def ended(self) -> str | None:
        """Why the trial is over, or None while it isn't."""
        return self.history.why_ended(self.config.tuning.early_stopping, self.config.tuning.steps)

    def is_due(self, step: int) -> bool:
        """Whether the trial reports after so many optimizer steps."""
        tuning = self.config.tuning
        return step % tuning.eval_every == 0 or step in self.spec.milestones or step >= tuning.steps

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

        `seconds`: of training over all attempts; `stopped`: why the method itself ends the training; `saver`: None in a
        worker that keeps no checkpoint.
        """
        train_loss = math.fsum(self._train_losses) / max(1, len(self._train_losses))
        self._train_losses.clear()
        cost = {"time/seconds": seconds, "cost/gpu_hours": self._num_gpus * seconds / 3600}
        report = self.history.add(step, {**metrics, "train/loss": train_loss, **cost}, stopped=stopped)
        self.history.seconds = seconds
        if saver is not None:
            self._write_checkpoint(step, saver)
        self.run.log(step, report.metrics)
        return report

    def _write_checkpoint(self, step: int, saver: Saver) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        saver.save_state(self.folder / "state")
        if self.history.best.step == step:
            shutil.rmtree(self.folder / "best", ignore_errors=True)
            saver.save_weights(self.folder / "best")
        self.history.save(self.folder)


def start_run(spec: TrialSpec, group: str | None, *, from_step: int) -> Run:
    """Log a trial to metrics.jsonl and the job's trackers. `group`: its sweep; `from_step`: of the checkpoint that it
    resumes from, 0 without one."""
    info = RunInfo(
        name=spec.trial.id,
        group=group,
        config={"job": spec.config.name, **spec.trial.values},
        directory=spec.directory,
        from_step=from_step,
    )
    return start_all([JSONL(), *spec.config.tracking.values()], info)
