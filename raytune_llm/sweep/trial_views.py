"""A run's trials for whoever looks at it from elsewhere: read from its files alone, while it runs or afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.trial_store import Ending, TrialRecord, TrialStore
from raytune_llm.training import checkpoints
from raytune_llm.training.history import read_reports
from raytune_llm.training.objective import Objective, Report
from raytune_llm.training.tracking.jsonl import METRICS

READERS = 8
"""Trials that are read at once: an object store answers slowly."""
MOST_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class TrialView:
    """A trial so far."""

    id: str
    record: TrialRecord | None
    """None for the one trial of a train run."""
    ending: Ending | None
    """None while it isn't over."""
    checkpoint: str | None
    """Path or URI of the newest."""
    reports: tuple[Report, ...]


def read_trials(run_dir: str, metric: str | None) -> list[TrialView]:
    """All trials of a run, a path or URI, in the order in which they were made. metric: what a report has besides what
    is logged between reports."""
    store = TrialStore.read(run_dir)
    ids = list(store.records) or open_storage(f"{run_dir}/trials").folders("")

    def view(id: str) -> TrialView:
        checkpoint, reports = read_curve(f"{run_dir}/trials/{id}", metric)
        return TrialView(
            id=id,
            record=store.records.get(id),
            ending=store.endings.get(id),
            checkpoint=checkpoint,
            reports=reports,
        )

    with ThreadPoolExecutor(READERS) as executor:
        found = list(executor.map(view, ids))
    return [trial for trial in found if trial.record is not None or trial.reports]


def read_curve(directory: str, metric: str | None) -> tuple[str | None, tuple[Report, ...]]:
    """A trial's newest checkpoint and its reports; of a trial without a checkpoint those that it has logged."""
    for _ in range(MOST_TRIES):
        if (newest := checkpoints.latest(directory)) is None:
            break
        try:
            return newest, tuple(read_reports(newest))
        except FileNotFoundError:
            continue  # a newer one has taken its place meanwhile
    return None, _logged(directory, metric)


def _logged(directory: str, metric: str | None) -> tuple[Report, ...]:
    """The reports among the lines of metrics.jsonl; the last line may be half-written."""
    try:
        lines = open_storage(directory).read(METRICS).splitlines(keepends=True)
    except FileNotFoundError:
        return ()
    reports = []
    for line in lines:
        if line.endswith(b"\n") and metric in (found := json.loads(line)):
            numbers = {name: float(value) for name, value in found.items() if name not in ("step", "time")}
            reports.append(Report(step=found["step"], metrics=numbers))
    return tuple(reports)


def best_first(trials: Sequence[TrialView], objective: Objective) -> list[TrialView]:
    """By each one's best report; trials without a report last."""

    def order(trial: TrialView) -> tuple[bool, tuple[float, float]]:
        best = objective.best(trial.reports)
        return best is None, (0.0, 0.0) if best is None else objective.order_of(best)

    return sorted(trials, key=order)
