"""Which trial is next: Ray Tune's search algorithm, which gives the trials of a sweep one after another.

In this order: those that an earlier start of the sweep has left unfinished, points that the user wants first, winners
of earlier sweeps, what the search proposes; and whenever one waits, clones that were asked for. A new trial is on disk
(trial_store.py) before Ray Tune gets it, so that no start of the sweep makes it twice.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search.search_algorithm import SearchAlgorithm

from raytune_llm.sweep.axes import identity
from raytune_llm.sweep.plan import BASE, BATCH_SIZE, Plan
from raytune_llm.sweep.search.base import Point, Search, Tried
from raytune_llm.sweep.trial_store import Origin, TrialRecord, TrialStore
from raytune_llm.training.objective import Objective

MOST_PENDING = 200
"""Trials that wait for resources at once: enough to show an autoscaler what is needed."""
SEARCHED = (Origin.search, Origin.warm_start)
"""Origins of the points that a search counts as its own."""

Ended = Callable[[str, Mapping[str, Any] | None, bool], None]
"""Takes a trial's id, its last result and whether it failed."""


@dataclass
class Proposals:
    """Points that have no trial yet, of one base."""

    store: TrialStore
    plan: Plan
    search: Search
    seed: int
    objective: Objective
    own_batch_size: int
    """Of trials whose points have none."""
    base: str | None
    first: Sequence[Point]
    warm: Sequence[Point]
    most: int | None
    """Of all trials of the run; None = no bound."""
    points: Sequence[Point] = ()
    """Where there are any, nothing else is tried."""
    origin: Origin = Origin.search
    """Of these points."""
    reports: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Step and cost of each report of each trial so far; less is better."""
    costs: dict[str, float] = field(default_factory=dict)
    """Of the best of them, of each trial."""
    listed: deque[tuple[Point, Origin]] | None = None
    """Points that come before the search's and aren't trials yet; None until they are asked for."""
    _known: dict[str, Tried] = field(default_factory=dict)

    def next(self) -> TrialRecord | None:
        """The next trial, made; None when there is none."""
        if self._num_left_of_most() <= 0:
            return None
        if self.listed is None:
            self.listed = self._listed()
        if self.listed:
            return self.make(*self.listed.popleft())
        if self.points:
            return None
        index = sum(record.origin in SEARCHED for record in self.of_base())
        point = self.search.propose(self.plan, index, self.tried(), self.seed)
        return None if point is None else self.make(point, Origin.search)

    def _listed(self) -> deque[tuple[Point, Origin]]:
        """The points that come before the search's, without those that have been tried."""
        points = [(point, self.origin) for point in self.points]
        if not self.points:
            points = [(point, Origin.first) for point in self.first]
            points += [(point, Origin.warm_start) for point in self.warm]
        tried = {self._identity(trial.values) for trial in self.tried()}
        return deque((point, origin) for point, origin in points if self._identity(point) not in tried)

    def _identity(self, values: Mapping[str, Any]) -> Any:
        return identity(self.plan.completed(values))

    def make(self, point: Point, origin: Origin) -> TrialRecord:
        """A trial at a point, of this base."""
        return self.store.create(point if self.base is None else {**point, BASE: self.base}, origin)

    def of_base(self) -> list[TrialRecord]:
        """The trials of this base; those that follow a sweep are apart."""
        return of_phase(self.store, self.base, self.origin)

    def unfinished(self) -> list[TrialRecord]:
        """Trials that an earlier start has left."""
        return [record for record in self.of_base() if record.id not in self.store.endings]

    def tried(self) -> list[Tried]:
        """All trials of this base."""
        return [self._tried(record) for record in self.of_base()]

    def _tried(self, record: TrialRecord) -> Tried:
        cost, is_over = self.costs.get(record.id), record.id in self.store.endings
        known = self._known.get(record.id)
        if known is None or (known.cost, known.is_over) != (cost, is_over):
            values = {key: value for key, value in record.values.items() if key != BASE}
            known = self._known[record.id] = Tried(values=values, cost=cost, is_over=is_over)
        return known

    def hear(self, trial_id: str, step: int, value: float) -> None:
        """A trial has reported this value of the metric. A step that a resumed trial repeats is known already."""
        reports = self.reports.setdefault(trial_id, [])
        if not reports or step > reports[-1][0]:
            cost = self.objective.cost(value)
            reports.append((step, cost))
            self.costs[trial_id] = min(cost, self.costs.get(trial_id, cost))

    def batch_size(self, trial_id: str) -> int:
        """Examples of each step of a trial."""
        return int(self.store.records[trial_id].values.get(BATCH_SIZE, self.own_batch_size))

    def num_left(self) -> int:
        """Trials to come, at most."""
        if self.points:
            return len(self._listed())
        new = len(self.first) + self.search.num_trials(self.plan)
        new -= sum(record.origin is not Origin.clone for record in self.of_base())
        return max(0, min(new, self._num_left_of_most()))

    def _num_left_of_most(self) -> int:
        """Trials that the run may still have; those that follow a sweep don't count."""
        if self.most is None or self.points:
            return sys.maxsize
        return self.most - sum(not record.origin.is_apart for record in self.store.records.values())


def of_phase(store: TrialStore, base: str | None, origin: Origin) -> list[TrialRecord]:
    """The trials of a base: those of the sweep, or those of an origin that follow it."""
    return [
        record
        for record in store.records.values()
        if record.values.get(BASE) == base
        and (record.origin is origin if origin.is_apart else not record.origin.is_apart)
    ]


class TrialQueue(SearchAlgorithm):
    """Gives Ray Tune at most `most_live` trials at a time."""

    def __init__(
        self,
        proposals: Proposals,
        waiting: Sequence[TrialRecord],
        *,
        most_live: int | None,
        ended: Ended,
    ) -> None:
        """`waiting`: trials to be given before new ones; `ended` is called when one ends."""
        self.proposals, self.waiting = proposals, deque(waiting)
        self.most_live, self.ended = most_live, ended
        self.live: dict[str, Trial] = {}
        """Given, not ended."""
        self.is_closed = False
        """Whether no trial is given any more."""
        self.is_exhausted = False
        """Whether there was no further point when one was asked for."""

    def add_configurations(self, experiments: Any) -> None:
        self.trial_of = partial(trial_of, experiments[0].spec)

    def next_trial(self) -> Trial | None:
        if self.is_closed or len(self.live) >= (self.most_live or MOST_PENDING) or self._waits_for_results():
            return None
        record = self.waiting.popleft() if self.waiting else self.proposals.next()
        self.is_exhausted = record is None
        if record is None:
            return None
        self.live[record.id] = trial = self.trial_of(record)
        return trial

    def _waits_for_results(self) -> bool:
        """Whether a search that learns would propose in advance, while trials still wait to be started."""
        pending = sum(trial.status == Trial.PENDING for trial in self.live.values())
        return pending >= (1 if self.proposals.search.learns and not self.waiting else MOST_PENDING)

    def add(self, record: TrialRecord) -> None:
        """Give this one next."""
        self.waiting.append(record)

    def withdraw(self, trial_id: str) -> None:
        """Don't give this one, if it waits."""
        self.waiting = deque(record for record in self.waiting if record.id != trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.live.pop(trial_id, None)
        self.ended(trial_id, result, error)

    def is_finished(self) -> bool:
        return self.is_closed or (self.is_exhausted and not self.waiting)


def trial_of(spec: Mapping[str, Any], record: TrialRecord) -> Trial:
    """Ray Tune's trial for one of ours, in an experiment that is specified like this; with our id, which its own
    searches don't allow for."""
    trial = Trial(
        spec["run"],
        config=dict(record.values),
        trial_id=record.id,
        experiment_tag=record.id,
        max_failures=spec["max_failures"],
        trial_dirname_creator=spec["trial_dirname_creator"],
        storage=spec["storage"],
    )
    trial.init_local_path()  # else the results of trials that never start can't be had
    return trial


def ended_trial(id: str) -> Trial:
    """What Ray Tune's schedulers take for a trial that has ended."""
    trial = Trial("ended", trial_id=id, stub=True)
    trial.set_status(Trial.TERMINATED)
    return trial
