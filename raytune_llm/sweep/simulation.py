"""A sweep played in advance: trials in slots, steps that cost what was measured, a scheduler that stops by ranks.

Time passes from one event to the next: an evaluation of a process's trials, a slot that is free again. A trial's cost,
by which it is ranked, is drawn once and stays the same: good trials stay good. With `patience` each has a best step,
too, drawn between its first evaluation and its last by the logarithm of the step, after which it runs on for so many
evaluations. Leaves out failures, trials that wait for each other at a rung, and the search: it knows no results.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

from raytune_llm.sweep.schedulers.base import Scheduler
from raytune_llm.training.rehearsal import Rehearsal

SMALLEST_SECONDS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a trial may be."""

    steps: int
    size: float
    """Its batch size in that of the rehearsed trial; > 0."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """What decides when trials are evaluated and end."""

    eval_every: int
    milestones: tuple[int, ...]
    scheduler: Scheduler
    patience: int | None
    """Evaluations without improvement before a trial ends; None = it runs as long as it may."""

    def next_due(self, step: int, steps: int) -> int:
        """The step of the next evaluation after `step`."""
        regular = (step // self.eval_every + 1) * self.eval_every
        return min([regular, steps, *(mark for mark in self.milestones if mark > step)])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where trials run."""

    num_processes: int
    """Each with a base of its own."""
    slots: int
    """Trials that share one."""
    max_concurrent: int | None
    first_seconds: float
    """Until the first trials take their first step."""
    next_seconds: float
    """From a trial's end until the next one in its slot takes its first step."""
    report_seconds: float
    """Of a report, in addition to its evaluation."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """How a sweep went."""

    seconds: float
    trial_steps: float
    """Of all trials together."""
    sized_steps: float
    """The same, each by its Length.size."""
    evaluations: float
    evaluation_seconds: float
    """Of all processes together."""
    busy_seconds: float
    """Of all processes together: with steps and evaluations."""

    def then(self, other: Played) -> Played:
        """This one followed by another."""
        both = asdict(other)
        return Played(**{name: value + both[name] for name, value in asdict(self).items()})


@dataclass(eq=False)
class _Trial:
    length: Length
    cost: float
    best_step: float
    """After which it no longer improves."""
    step: int = 0
    next_rung: int = 0


@dataclass(eq=False)
class _Process:
    ready: list[float]
    """When each free slot may take a trial."""
    active: list[_Trial] = field(default_factory=list)
    due: list[_Trial] = field(default_factory=list)
    """Those that have just been evaluated."""


class Simulation:
    """One play of a sweep."""

    def __init__(
        self, lengths: Sequence[Length], course: Course, layout: Layout, costs: Rehearsal, *, seed: int
    ) -> None:
        draw = random.Random(seed)
        self.course, self.layout, self.costs = course, layout, costs
        self.waiting = [self._trial(length, draw) for length in reversed(lengths)]
        slots = layout.slots
        self.processes = [_Process([layout.first_seconds] * slots) for _ in range(layout.num_processes)]
        self.events = [(layout.first_seconds, place) for place in range(layout.num_processes)]
        self.judged: dict[int, list[float]] = {}
        """Costs at each rung so far."""
        self.ended_at = layout.first_seconds
        self.trial_steps, self.sized_steps, self.evaluations = 0, 0.0, 0
        self.evaluation_seconds = self.busy_seconds = 0.0

    def play(self) -> Played:
        """To its end."""
        for _ in range(self.layout.slots):  # the first trials are spread evenly
            for process in self.processes:
                self._admit(process, self.layout.first_seconds)
        while self.events:
            now, place = heapq.heappop(self.events)
            process = self.processes[place]
            self._decide(process, now)
            self._admit(process, now)
            if process.active:
                heapq.heappush(self.events, (self._advance(process, now), place))
            elif self.waiting:
                coming = max(min(process.ready), self.events[0][0] if self.events else now)
                heapq.heappush(self.events, (coming + SMALLEST_SECONDS, place))
        return Played(
            seconds=self.ended_at,
            trial_steps=self.trial_steps,
            sized_steps=self.sized_steps,
            evaluations=self.evaluations,
            evaluation_seconds=self.evaluation_seconds,
            busy_seconds=self.busy_seconds,
        )

    def _trial(self, length: Length, draw: random.Random) -> _Trial:
        first = min(self.course.eval_every, length.steps)
        best_step = first * (length.steps / first) ** draw.random()
        return _Trial(length, draw.random(), best_step)

    def _admit(self, process: _Process, now: float) -> None:
        """Trials for the process's free slots, as long as no other process has fewer."""
        most = self.layout.max_concurrent or math.inf
        for at in [at for at in process.ready if at <= now]:
            running = [len(other.active) for other in self.processes]
            if self.waiting and sum(running) < most and len(process.active) <= min(running):
                process.ready.remove(at)
                process.active.append(self.waiting.pop())

    def _advance(self, process: _Process, now: float) -> float:
        """Step the process's trials to their next event; returns when that is."""
        active, course = process.active, self.course
        size = sum(trial.length.size for trial in active) / len(active)
        step_seconds = self.costs.step_seconds(len(active)) * size
        count = min(course.next_due(trial.step, trial.length.steps) - trial.step for trial in active)
        joining = [at for at in process.ready if at > now] if self.waiting else []
        if joining:
            count = max(1, min(count, math.ceil((min(joining) - now) / step_seconds)))
        due = [trial for trial in active if trial.step + count == course.next_due(trial.step, trial.length.steps)]
        for trial in active:
            trial.step += count
        evaluating = self.costs.evaluation_seconds(len(due)) + self.layout.report_seconds * len(due) if due else 0.0
        now += count * step_seconds + evaluating
        self.trial_steps += count * len(active)
        self.sized_steps += count * len(active) * size
        self.evaluations += len(due)
        self.evaluation_seconds += evaluating
        self.busy_seconds += count * step_seconds + evaluating
        process.due = due
        return now

    def _decide(self, process: _Process, now: float) -> None:
        """Free the slots of trials that end with their last evaluation, as a scheduler judges those that are made at
        the same time."""
        due, order = process.due, self.course.scheduler.order
        ordered = due if order is None else [due[place] for place in order([trial.cost for trial in due])]
        for trial in ordered:
            if not self._continues(trial):
                process.active.remove(trial)
                process.ready.append(now + self.layout.next_seconds)
                self.ended_at = now
        process.due = []

    def _continues(self, trial: _Trial) -> bool:
        """Whether a trial that has been evaluated takes another step."""
        course, steps = self.course, trial.length.steps
        if trial.step >= steps:
            return False
        if course.patience is not None:
            best = math.ceil(trial.best_step / course.eval_every) * course.eval_every
            if trial.step >= best + course.patience * course.eval_every:
                return False
        rungs = course.scheduler.rungs(steps)
        passed = True
        while trial.next_rung < len(rungs) and trial.step >= rungs[trial.next_rung]:
            before = self.judged.setdefault(rungs[trial.next_rung], [])
            passed = passed and course.scheduler.survives(trial.cost, before)
            before.append(trial.cost)
            trial.next_rung += 1
        return passed


def expected(
    lengths: Sequence[Length], course: Course, layout: Layout, costs: Rehearsal, *, plays: int, seed: int
) -> Played:
    """The mean of some plays, each with ranks of its own."""
    found = [asdict(Simulation(lengths, course, layout, costs, seed=seed + play).play()) for play in range(plays)]
    return Played(**{name: fmean(played[name] for played in found) for name in found[0]})
