"""What a job shows in its trackers besides its trials' metrics: that it begins, and what it came to.

The end is shown once the version is published, before result.json is written. A tracker that fails there changes
nothing of the version: the reason is printed in one line, and the run ends as it would have.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from raytune_llm.errors import first_line
from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.backends.base import group_of, trial_spec, without_base
from raytune_llm.sweep.leaderboard import leaderboard
from raytune_llm.sweep.plan import BASE
from raytune_llm.sweep.tables import keys_of, short_key
from raytune_llm.training.config import Outcome, TrialSpec
from raytune_llm.training.run_config import base_name, run_config
from raytune_llm.training.tracking.background import flush
from raytune_llm.training.tracking.base import JobEnd, JobTracker, RunInfo, Value
from raytune_llm.training.tracking.jsonl import read_lines
from raytune_llm.training.trial_log import complete, is_tracked, run_info, summary_of

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.jobs.setup import Started
    from raytune_llm.sweep.leaderboard import Row
    from raytune_llm.sweep.phases import Swept

FILES = ("report.html", "report.png", "leaderboard.csv", "evaluation-*.md")
"""What trackers show of a run's folder."""


def sweep_begins(started: Started[SweepJob]) -> None:
    """Have trackers get ready for a sweep. Raises InputError when one can't be used."""
    if started.job.tracking:
        _begin(started.job, sweep_info(started))


def run_begins(started: Started[Any], spec: TrialSpec) -> None:
    """The same for a run of its own."""
    _begin(started.job, run_info(spec, None, from_step=0))


def sweep_ended(
    bases: Mapping[str | None, Started[SweepJob]], swept: Swept, won: Outcome, published: PublishResult
) -> None:
    """Show a sweep's leaderboard, winner and reports, and complete what trackers lack of its trials."""
    started = bases[won.trial.values.get(BASE)]
    job = started.job
    if not job.tracking:
        return
    info = sweep_info(started)
    outcomes = [*swept.outcomes, *swept.followed]
    specs = [_spec(bases, swept, outcome) for outcome in outcomes]
    if not attempt("trials", partial(_complete, specs, outcomes, info.name)):
        return
    rows = leaderboard(swept.outcomes, swept.plan, info.objective)
    columns, cells = leaderboard_cells(rows, info.objective.metric)
    end = _end(started, won, published, info)
    spent = {f"spent/{name}": float(value) for name, value in swept.spent.items()}
    end = replace(
        end,
        trials=tuple(run_info(spec, info.name, from_step=0) for spec in specs),
        space={short_key(key): described(axis) for key, axis in job.sweep.axes().items()},
        columns=columns,
        rows=cells,
        summary={**end.summary, **spent, "trials": float(len(specs))},
    )
    _show(job, end)


def leaderboard_cells(rows: Sequence[Row], metric: str) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """The columns of a leaderboard and, for each row, a cell for each; the metric that decides is the first."""
    keys = keys_of(rows)
    metrics = [metric, *sorted({name for row in rows for name in row.best.metrics} - {metric})]
    cells = [
        (
            place,
            row.trial,
            *[row.values.get(key) for key in keys],
            row.best.step,
            *[row.best.metrics.get(name) for name in metrics],
            row.ended,
        )
        for place, row in enumerate(rows, start=1)
    ]
    return ("place", "trial", *map(short_key, keys), "best_step", *metrics, "ended"), tuple(cells)


def run_ended(started: Started[Any], spec: TrialSpec, outcome: Outcome, published: PublishResult) -> None:
    """Show the version and the reports of a run of its own."""
    if not started.job.tracking:
        return
    if attempt("trial", partial(_complete, [spec], [outcome], None)):
        _show(started.job, _end(started, outcome, published, run_info(spec, None, from_step=0)))


def sweep_info(started: Started[SweepJob]) -> RunInfo:
    """The sweep's own run: its config has the space in place of the keys that trials differ in."""
    job = started.job
    config = job.trial_config(started.prepared.better)
    axes = {short_key(key): described(axis) for key, axis in job.sweep.axes().items()}
    shared = {key: value for key, value in run_config(config).items() if key not in axes}
    group = group_of(config)
    return RunInfo(
        name=group,
        group=group,
        config=shared | {"space": axes},
        directory=job.run_dir,
        home=job.home,
        objective=config.objective,
        from_step=0,
    )


def described(axis: Axis) -> dict[str, Any]:
    """An axis as plain data."""
    if axis.choices:
        return {"values": list(axis.choices)}
    return {"min": axis.low, "max": axis.high, "distribution": axis.distribution}


def attempt(name: str, call: Callable[[], None]) -> bool:
    """Whether a call of trackers succeeded; prints in one line why it did not."""
    try:
        call()
        flush()
    except Exception as error:
        print(
            f"! tracking.{name}: {type(error).__name__}: {first_line(error)}; the version stays published", flush=True
        )
        return False
    return True


def _begin(job: TrainJob, info: RunInfo) -> None:
    for tracker in job.tracking.values():
        if isinstance(tracker, JobTracker):
            tracker.begin_job(info)


def _show(job: TrainJob, end: JobEnd) -> None:
    for name, tracker in job.tracking.items():
        if isinstance(tracker, JobTracker):
            attempt(name, partial(tracker.end_job, end))


def _spec(bases: Mapping[str | None, Started[SweepJob]], swept: Swept, outcome: Outcome) -> TrialSpec:
    """A trial of a sweep as it was trained."""
    started = bases[outcome.trial.values.get(BASE)]
    config = started.job.trial_config(started.prepared.better)
    return trial_spec(config, swept.plan, without_base(outcome.trial.values), outcome.trial.id)


def _complete(specs: Sequence[TrialSpec], outcomes: Sequence[Outcome], group: str | None) -> None:
    """Give trackers the whole log of each trial that was killed before they had it."""
    flush()
    for spec, outcome in zip(specs, outcomes, strict=True):
        if is_tracked(spec):
            continue
        lines = read_lines(spec.directory)
        last = max((line.step for line in lines), default=0)
        info = replace(run_info(spec, group, from_step=0), from_step=last, earlier=lines)
        failed = outcome.ended.startswith("failed")
        complete([*spec.config.tracking.values()], info, {"ended": outcome.ended}, failed=failed)


def _end(started: Started[Any], won: Outcome, published: PublishResult, info: RunInfo) -> JobEnd:
    """What all jobs have to show."""
    job, card = started.job, published.version.card
    files = [name for name in open_storage(job.run_dir).files("") if "/" not in name]
    shown = sorted(name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in FILES))
    best: dict[str, Value] = summary_of(won.reports, info.objective)
    return JobEnd(
        run=info,
        trials=(),
        space={},
        columns=(),
        rows=(),
        summary={**best, **card.metrics, "winner": won.trial.id, "version": published.version.reference},
        model=job.name,
        version=published.version.reference,
        folder=published.version.path,
        promoted=published.promoted,
        card={**vars(card), "base_name": base_name(card.base)},
        directory=job.run_dir,
        files=tuple(shown),
    )
