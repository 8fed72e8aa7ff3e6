"""The log of a trial: metrics.jsonl and the job's trackers, and what the trial came to.

A run's summary is its best report: the metrics of the weights that are kept, each under its own name, so that a table
or plot of all trials compares what each would publish. `best_step` is that report's step, `objective` its value of the
metric that decides, time and cost are those of the whole trial, `ended` says why it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage
from raytune_llm.training.config import TrialSpec
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.run_config import run_config
from raytune_llm.training.tracking.background import WORKER, BackgroundRun
from raytune_llm.training.tracking.base import CompositeRun, RunInfo, Tracker, Value, start_all
from raytune_llm.training.tracking.jsonl import JSONL, LocalLines, RemoteLines, read_lines

TRACKED = "tracked.json"
"""In a trial's folder: all its trackers have finished its log."""
TOTALS = ("time/", "cost/")
"""What begins the metrics that add up over a trial."""


class TrialLog:
    """A Run that knows what it has come to."""

    def __init__(self, run: CompositeRun, info: RunInfo) -> None:
        self._run, self._info = run, info
        self._has_trackers = not all(isinstance(one, LocalLines | RemoteLines) for one in run.runs)
        self._reports = [
            Report(step=line.step, metrics=dict(line.metrics))
            for line in info.earlier
            if info.objective.metric in line.metrics
        ]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(step, metrics)
        if self._info.objective.metric in metrics:
            self._reports.append(Report(step=step, metrics=dict(metrics)))
            self._run.summarize(summary_of(self._reports, self._info.objective))

    def finish(self, summary: Mapping[str, Value], failed: bool) -> None:
        """End all logs; those that a thread keeps have ended after tracking.background.flush()."""
        self._run.finish({**summary_of(self._reports, self._info.objective), **summary}, failed)
        kept = [run for run in self._run.runs if isinstance(run, BackgroundRun)]
        if self._has_trackers:
            WORKER.put(lambda: self._note(summary) if all(run.error is None for run in kept) else None)

    def _note(self, summary: Mapping[str, Value]) -> None:
        open_storage(self._info.directory).write(TRACKED, to_json(summary).encode())


def summary_of(reports: Sequence[Report], objective: Objective) -> dict[str, Value]:
    """The summary of a trial with these reports; empty without any."""
    best = objective.best(reports)
    if best is None:
        return {}
    totals = {name: value for name, value in reports[-1].metrics.items() if name.startswith(TOTALS)}
    own = {"best_step": best.step, "last_step": reports[-1].step, "objective": best.metrics[objective.metric]}
    return {**best.metrics, **totals, **own}


def run_info(spec: TrialSpec, group: str | None, *, from_step: int) -> RunInfo:
    """`group`: the trial's sweep; `from_step`: of the checkpoint that it resumes from, 0 without one."""
    return RunInfo(
        name=spec.trial.id if group else f"{spec.config.name}-{spec.config.run}",
        group=group,
        config=run_config(spec.config, trial=spec.trial.id),
        directory=spec.directory,
        home=spec.config.home,
        objective=spec.config.objective,
        from_step=from_step,
        earlier=read_lines(spec.directory, up_to=from_step) if from_step else (),
    )


def start_run(spec: TrialSpec, group: str | None, *, from_step: int) -> TrialLog:
    """Log a trial to metrics.jsonl and the job's trackers; arguments as in run_info."""
    info = run_info(spec, group, from_step=from_step)
    open_storage(spec.directory).delete(TRACKED)
    return TrialLog(start_all([JSONL(), *spec.config.tracking.values()], info), info)


def is_tracked(spec: TrialSpec) -> bool:
    """Whether all trackers have finished the trial's log."""
    return open_storage(spec.directory).exists(TRACKED)


def complete(trackers: Sequence[Tracker], info: RunInfo, summary: Mapping[str, Value], *, failed: bool) -> None:
    """Give trackers the log of an ended trial that was killed before they had all of it. `info`: with all lines."""
    TrialLog(start_all(trackers, info), info).finish(summary, failed)
