"""Runs and trials as text: what jobs/control.py prints."""

from __future__ import annotations

from collections.abc import Sequence

from raytune_llm.data.findings import many
from raytune_llm.sweep.status import RunStatus, State
from raytune_llm.sweep.tables import cell, short_key, text_table
from raytune_llm.sweep.trial_views import TrialView, best_first
from raytune_llm.training.curves import Scale, curve_line, scale_of
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.screen import duration

PROGRESS_WIDTH = 10


def objective_of(status: RunStatus) -> Objective | None:
    """What the run's trials are compared by; None before it has found out."""
    if status.metric is None or status.lower_is_better is None:
        return None
    return Objective(status.metric, lower_is_better=status.lower_is_better)


def trials_table(trials: Sequence[TrialView], status: RunStatus, now: float) -> str:
    """All trials, the best first, with the curves of their evaluations, which share a scale."""
    objective = objective_of(status)
    if objective is None or not trials:
        return "no trials yet"
    scale = curve_scale(trials, objective)
    keys = list(dict.fromkeys(key for trial in trials if trial.record is not None for key in trial.record.values))
    columns = ["trial", *map(short_key, keys), "step", objective.metric, "best", "curve", "state", "origin"]
    rows = []
    for trial in best_first(trials, objective):
        values = {} if trial.record is None else trial.record.values
        best = objective.best(trial.reports)
        rows.append(
            [
                trial.id,
                *[cell(values[key]) if key in values else "" for key in keys],
                str(trial.reports[-1].step) if trial.reports else "",
                metric_cell(trial.reports[-1] if trial.reports else None, objective),
                metric_cell(best, objective),
                curve_line([report.metrics[objective.metric] for report in trial.reports], scale, objective),
                trial_state(trial, status, now).partition(":")[0],
                origin(trial),
            ]
        )
    return text_table(columns, rows)


def trial_text(trial: TrialView, status: RunStatus, now: float) -> str:
    """All of one trial."""
    objective = objective_of(status)
    lines = [("trial", trial.id), ("state", trial_state(trial, status, now))]
    if trial.record is not None:
        lines += [("origin", origin(trial)), *trial.record.values.items()]
    if trial.checkpoint is not None:
        lines.append(("checkpoint", trial.checkpoint))
    if objective is not None and (best := objective.best(trial.reports)) is not None:
        lines.append(("best", f"{objective.metric} {metric_cell(best, objective)} at step {best.step}"))
    width = max(len(key) for key, _ in lines)
    text = "\n".join(f"{key.ljust(width)}  {cell(value)}" for key, value in lines)
    if objective is None or not trial.reports:
        return text
    curve = [report.metrics[objective.metric] for report in trial.reports]
    drawn = curve_line(curve, curve_scale([trial], objective), objective)
    points = [[str(report.step), metric_cell(report, objective)] for report in trial.reports]
    last = [[name, cell(value)] for name, value in sorted(trial.reports[-1].metrics.items())]
    return "\n\n".join(
        [
            text,
            f"{drawn}\n{text_table(['step', objective.metric], points)}",
            text_table(["at its last report", ""], last),
        ]
    )


def origin(trial: TrialView) -> str:
    """Who asked for it."""
    if trial.record is None:
        return ""
    return " of ".join(filter(None, [trial.record.origin.value.replace("_", " "), trial.record.parent]))


def trial_state(trial: TrialView, status: RunStatus, now: float) -> str:
    """Why it ended, or what it does."""
    if trial.ending is not None:
        return trial.ending.why
    if status.state is State.comparing or status.state is State.ended:
        return "over"
    if status.state.is_final or status.is_lost(now):
        return "unfinished"
    if status.state is not State.running:
        return status.state.value
    return "running" if trial.reports else "starting"


def metric_cell(report: Report | None, objective: Objective) -> str:
    return "" if report is None else f"{cell(report.metrics[objective.metric])}"


def curve_scale(trials: Sequence[TrialView], objective: Objective) -> Scale:
    """Of all reports of these trials."""
    metric = objective.metric
    values = [report.metrics[metric] for trial in trials for report in trial.reports]
    return scale_of(values, [trial.reports[0].metrics[metric] for trial in trials if trial.reports], objective)


def jobs_table(runs: Sequence[RunStatus], now: float) -> str:
    """All runs, the newest first."""
    columns = ["run", "", "state", "progress", "trials", "best", "spent", "left", "owner", "age"]
    rows = [
        [
            f"{run.name}/{run.run}",
            run.command,
            "lost" if run.is_lost(now) else run.state.value,
            progress(run),
            "" if run.num_trials is None else f"{run.num_ended or 0}/{run.num_trials}",
            "" if run.best is None else f"{run.metric} {cell(run.best.value)}",
            spent(run),
            "" if run.eta_seconds is None or run.state is not State.running else duration(run.eta_seconds),
            run.owner,
            duration(now - run.started),
        ]
        for run in sorted(runs, key=lambda run: -run.started)
    ]
    return text_table(columns, rows)


def headline(run: RunStatus, now: float) -> str:
    """How far a run is, in a line or two."""
    lost = run.is_lost(now)
    state = f"lost: the same command with run={run.run} resumes it" if lost else run.state.value
    parts = [f"{run.name}/{run.run}", f"{run.command} of {run.owner}", state]
    if run.num_trials is not None:
        parts.append(f"{run.num_ended or 0} of {many(run.num_trials, 'trial')} ended")
    if run.best is not None:
        parts.append(f"best {run.metric} {cell(run.best.value)} ({run.best.trial} at step {run.best.step})")
    parts += [spent(run)] if spent(run) else []
    return ", ".join(parts) + (f"\n{run.note}" if run.note and not lost else "")


def progress(run: RunStatus) -> str:
    """A bar of the steps that are no longer to do."""
    if run.state is State.ended:
        share = 1.0
    elif run.steps_total and run.steps_done is not None:
        share = min(1.0, run.steps_done / run.steps_total)
    else:
        return ""
    full = int(share * PROGRESS_WIDTH)
    return f"{'█' * full}{'░' * (PROGRESS_WIDTH - full)} {100 * share:.0f} %"


def spent(run: RunStatus) -> str:
    """What it has cost, in the unit that says most."""
    if run.usd is not None:
        return f"${run.usd:.2f}"
    if run.gpu_hours:
        return f"{run.gpu_hours:.2g} GPU hours"
    return duration(run.updated - run.started if run.seconds is None else run.seconds)
