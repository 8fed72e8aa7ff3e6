"""Sweeps over recorded learning curves: what searches and schedulers cost and miss, and what stopping saves when the
eval set can't tell.

    python benchmarks/search_replay.py               the tables; minutes
    python benchmarks/search_replay.py --tune 1000   as many trials through Ray Tune: driver's memory, time per trial
    python benchmarks/search_replay.py --record 2    record curves.npz anew in 2 processes (recorded_curves.py)

Each replay has a world of its own, two thirds of the recorded learning rates of each cell, drawn at random: a point of
the space takes the curve of its cell's nearest rate. A sweep of 60 trials, 16 at a time, steps them together, as a pack
does; its searches and Ray Tune's schedulers are the real ones. Regret: the best cost that the sweep found minus the
lowest of the world at any report. Two metrics are replayed: eval/loss, and the share of eval records whose right answer
has more than half of the probability (eval/likely), which is as coarse as an accuracy.

With the stop (sweep/resolution.py) the same sweep is ended at the first judgement that says so, after one more report
of its running trials. `lost`: how much worse its best is than that of the whole sweep. `safe`: the share of those
sweeps in which that is at most what the eval records can tell apart.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from recorded_curves import BATCH_SIZES, FILE, HIGHEST, LOWEST, SIZES, STEPS, Recorded, load, record
from tune_replay import measured

from raytune_llm.evaluation.metrics import Metric
from raytune_llm.evaluation.terms import Better
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.plan import BATCH_SIZE, SIZE, Plan, make_plan
from raytune_llm.sweep.resolution import Curve, Judgement, judge
from raytune_llm.sweep.search.base import Tried
from raytune_llm.sweep.space import Sweep
from raytune_llm.sweep.tables import text_table
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.objective import Objective

RATE = "tuning.learning_rate_multiplier"
GRID_RATES = 6
WIDE: dict[str, Any] = {"min": LOWEST, "max": HIGHEST, "distribution": "log_uniform"}
TRIALS = len(SIZES) * len(BATCH_SIZES) * GRID_RATES
SMALLEST = 12
SLOTS = 16
KEPT_RATES = 8
"""Of the recorded rates of each cell, those in a replay's world."""
GRACE_STEPS = 20
SEARCHES = {"grid": "grid", "random": "random", "TPE": "optuna"}
SCHEDULERS = ("none", "asha", "median")
METRICS = {
    "eval/loss": (Objective("eval/loss", lower_is_better=True), Recorded.loss),
    "eval/likely": (Objective("eval/likely", lower_is_better=False), Recorded.likely),
}


@dataclass(frozen=True)
class World:
    """Recorded configurations that a sweep's space consists of."""

    recorded: Recorded
    places: Sequence[int]
    objective: Objective
    metric: Callable[[Recorded, int, int], Metric]

    @cached_property
    def costs(self) -> dict[int, list[float]]:
        """Of each configuration at each report."""
        reports = range(len(self.recorded.steps))
        return {
            place: [self.objective.cost(self.metric(self.recorded, place, report).whole()) for report in reports]
            for place in self.places
        }

    @cached_property
    def steps(self) -> list[int]:
        return self.recorded.steps.astype(int).tolist()

    @cached_property
    def lowest(self) -> float:
        return min(map(min, self.costs.values()))

    def nearest(self, point: dict[str, Any]) -> int:
        """The configuration that a point of the space stands for."""
        cell = [
            place
            for place in self.places
            if (self.recorded.sizes[place], self.recorded.batch_sizes[place]) == (point[SIZE], point[BATCH_SIZE])
        ]
        return min(cell, key=lambda place: abs(math.log(self.recorded.rates[place] / point[RATE])))


def world(recorded: Recorded, metric: str, seed: int) -> World:
    """A replay's own."""
    draw = random.Random(seed)
    cells: dict[tuple[float, float], list[int]] = {}
    for place, cell in enumerate(zip(recorded.sizes, recorded.batch_sizes, strict=True)):
        cells.setdefault(cell, []).append(place)
    places = [place for cell in cells.values() for place in draw.sample(cell, min(KEPT_RATES, len(cell)))]
    return World(recorded, places, *METRICS[metric])


@cache
def settings(search: str, scheduler: str, trials: int) -> tuple[Sweep, TrialConfig]:
    """A sweep as jobs/sweep.py has it."""
    from raytune_llm.jobs.config import load as load_job

    job = load_job(
        "sweep",
        [
            *("model=demo", "data=demo_sarcasm", f"sweep/search={SEARCHES[search]}", f"sweep/scheduler={scheduler}"),
            *(f"sweep.space.tuning.adapter_size={list(SIZES)}", f"+sweep.space.tuning.batch_size={list(BATCH_SIZES)}"),
            *(f"sweep.space.tuning.steps=[{STEPS}]", f"sweep.space.{RATE}=[1.0]"),
            *([] if scheduler == "none" else [f"sweep.scheduler.grace_steps={GRACE_STEPS}"]),
            *([] if search == "grid" else [f"sweep.search.trials={trials}"]),
        ],
    )
    return job.sweep, job.trial_config(Better.lower)


def rates(search: str, seed: int) -> Axis:
    """The learning rates of a replay's space: for a grid evenly spread choices, shifted at random."""
    if search != "grid":
        return Axis(low=WIDE["min"], high=WIDE["max"], distribution=WIDE["distribution"])
    shift, span = random.Random(seed).random(), math.log(HIGHEST / LOWEST)
    return Axis(choices=tuple(LOWEST * math.exp(span * (place + shift) / GRID_RATES) for place in range(GRID_RATES)))


@dataclass(eq=False)
class Trial:
    """As Ray Tune's schedulers see it."""

    trial_id: str
    values: dict[str, Any]
    place: int
    """Of its configuration among the recorded ones."""
    num_reports: int = 0
    is_over: bool = False


@dataclass
class Replay:
    """A sweep on its way."""

    sweep: Sweep
    plan: Plan
    world: World
    seed: int
    slots: int = SLOTS
    trials: list[Trial] = field(default_factory=list)
    is_closed: bool = False
    """Whether no trial is started any more."""

    def __post_init__(self) -> None:
        objective = self.world.objective
        self.scheduler = self.sweep.scheduler.build(objective.metric, objective.mode, self.world.steps[-1])
        np.random.seed(self.seed)  # ASHA draws a bracket of one

    @property
    def running(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.is_over]

    def get_live_trials(self) -> list[Trial]:
        """Asked by the median rule, which would have waiting trials take turns: none waits."""
        return []

    def costs(self, trial: Trial) -> list[float]:
        return self.world.costs[trial.place][: trial.num_reports]

    def best(self) -> float:
        return min((min(self.costs(trial), default=math.inf) for trial in self.trials), default=math.inf)

    def num_steps(self) -> int:
        return sum(self.world.steps[trial.num_reports - 1] for trial in self.trials if trial.num_reports)

    def ticks(self) -> Iterator[None]:
        """Start trials and have each report once, again and again."""
        while True:
            while not self.is_closed and len(self.running) < self.slots and (point := self._propose()) is not None:
                trial = Trial(f"t{len(self.trials) + 1:04d}", point, self.world.nearest(point))
                self.trials.append(trial)
                self.scheduler.on_trial_add(self, trial)
            if not self.running:
                return
            self._report()
            yield

    def _propose(self) -> dict[str, Any] | None:
        tried = [
            Tried(values=trial.values, cost=min(self.costs(trial), default=None), is_over=trial.is_over)
            for trial in self.trials
        ]
        return self.sweep.search.propose(self.plan, len(self.trials), tried, self.seed)

    def _report(self) -> None:
        """One report of every running trial; the scheduler receives those of a step in the order that suits it."""
        by_step: dict[int, list[Trial]] = {}
        for trial in self.running:
            trial.num_reports += 1
            by_step.setdefault(trial.num_reports, []).append(trial)
        for num_reports, found in sorted(by_step.items()):
            costs = [self.world.costs[trial.place][num_reports - 1] for trial in found]
            order = range(len(found)) if self.sweep.scheduler.order is None else self.sweep.scheduler.order(costs)
            for place in order:
                self._decide(found[place], costs[place])

    def _decide(self, trial: Trial, cost: float) -> None:
        objective, steps = self.world.objective, self.world.steps
        result = {"step": steps[trial.num_reports - 1], objective.metric: objective.cost(cost)}
        if self.scheduler.on_trial_result(self, trial, result) == "STOP" or trial.num_reports == len(steps):
            trial.is_over = True
            self.scheduler.on_trial_complete(self, trial, result)

    def judgement(self) -> Judgement:
        """What the sweep makes of its trials so far."""
        steps = self.world.steps
        curves = {
            trial.trial_id: Curve(
                steps=steps[: trial.num_reports],
                costs=self.costs(trial),
                most_steps=steps[-1],
                is_over=trial.is_over,
            )
            for trial in self.trials
        }
        by_id = {trial.trial_id: trial for trial in self.trials}
        num_pending = self.sweep.search.num_trials(self.plan) - len(self.trials)
        return judge(
            self.world.objective,
            curves,
            num_pending=num_pending,
            records=lambda id: self._records(by_id[id]),
            seed=self.seed,
        )

    def _records(self, trial: Trial) -> Metric:
        costs = self.costs(trial)
        return self.world.metric(self.world.recorded, trial.place, costs.index(min(costs)))


@dataclass(frozen=True)
class Result:
    """A replay with and without the stop."""

    regret: float
    num_steps: int
    most_steps: int
    """Of as many trials, each to its end."""
    stopped: Judgement | None
    """What ended it; None where nothing did."""
    lost: float
    num_steps_stopped: int


def replayed(recorded: Recorded, search: str, scheduler: str, metric: str, seed: int, trials: int) -> Result:
    """A sweep to its end; noted on the way: what it would have come to if it had been stopped."""
    sweep, config = settings(search, scheduler, trials)
    plan = make_plan(config, sweep.axes() | {RATE: rates(search, seed)})
    run = Replay(sweep, plan, world(recorded, metric, seed), seed)
    stopped = None
    for _ in run.ticks():
        if stopped is None and (found := run.judgement()).stop and (run.running or num_left(run)):
            stopped = found, *drained(run)
    whole = run.best()
    judgement, best, num_steps = stopped or (None, whole, run.num_steps())
    most_steps = len(run.trials) * run.world.steps[-1]
    return Result(whole - run.world.lowest, run.num_steps(), most_steps, judgement, best - whole, num_steps)


def num_left(run: Replay) -> int:
    return run.sweep.search.num_trials(run.plan) - len(run.trials)


def drained(run: Replay) -> tuple[float, int]:
    """The best cost and the steps of a sweep whose running trials report once more and then end."""
    steps, last = run.world.steps, len(run.world.steps)
    ends = {id(trial): min(last, trial.num_reports + (not trial.is_over)) for trial in run.trials}
    best = min(min(run.world.costs[trial.place][: ends[id(trial)]]) for trial in run.trials)
    return best, sum(steps[end - 1] for end in ends.values())


def row(found: Sequence[Result]) -> dict[str, float]:
    """Means over replays; of those that were stopped, what that lost and saved."""
    stopped = [result for result in found if result.stopped is not None]
    saved = [1 - result.num_steps_stopped / result.num_steps for result in found]
    safe = [result.lost <= result.stopped.resolution for result in stopped if result.stopped is not None]
    return {
        "regret": statistics.mean(result.regret for result in found),
        "worst regret": max(result.regret for result in found),
        "steps": statistics.mean(result.num_steps / result.most_steps for result in found),
        "stopped": len(stopped) / len(found),
        "saved": statistics.mean(saved),
        "resolution": statistics.mean(r.stopped.resolution for r in stopped if r.stopped) if stopped else math.nan,
        "lost": statistics.mean(result.lost for result in stopped) if stopped else math.nan,
        "most lost": max((result.lost for result in stopped), default=math.nan),
        "safe": statistics.mean(safe) if safe else math.nan,
    }


def tables(recorded: Recorded, replays: int, trials: int) -> dict[str, dict[str, dict[str, float]]]:
    """A row of each metric, search and scheduler, printed as it is found."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric in METRICS:
        rows = found[metric] = {}
        for search in SEARCHES:
            for scheduler in SCHEDULERS:
                results = [replayed(recorded, search, scheduler, metric, seed, trials) for seed in range(replays)]
                rows[f"{search}, {scheduler}"] = row(results)
        columns = [metric, *next(iter(rows.values()))]
        lines = [[name, *[f"{value:.3g}" for value in cells.values()]] for name, cells in rows.items()]
        print(f"\n{text_table(columns, lines)}", flush=True)
    return found


def through_tune(recorded: Recorded, trials: int) -> list[dict[str, float]]:
    """So many random trials through Ray Tune, with ASHA: what each costs the driver."""
    sweep, config = settings("random", "asha", trials)
    steps = recorded.steps.astype(int).tolist()
    losses = recorded.sums.sum(-1) / recorded.weights.sum()
    curves = [list(zip(steps, curve, strict=True)) for curve in losses.tolist()]
    sweep = replace(sweep, space={**sweep.space, "tuning": {**sweep.space["tuning"], "learning_rate_multiplier": WIDE}})
    found = measured(sweep, config, curves)
    columns = list(found[0])
    print(text_table(columns, [[f"{cells[column]:.4g}" for column in columns] for cells in found]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=int, metavar="PROCESSES", help="record the curves")
    parser.add_argument("--tune", type=int, metavar="TRIALS", help="trials through Ray Tune")
    parser.add_argument("--replays", type=int, default=40, help="of each search with each scheduler")
    parser.add_argument("--trials", type=int, default=TRIALS, help="of each random and TPE sweep")
    parser.add_argument("--smoke", action="store_true", help="one replay of few trials: it runs")
    parser.add_argument("--curves", type=Path, default=FILE, help="the file of recorded curves")
    options = parser.parse_args()
    if options.record:
        return record(options.curves, processes=options.record)
    recorded = load(options.curves)
    summary: dict[str, Any] = {"benchmark": "search_replay"}
    if options.tune:
        summary["driver"] = through_tune(recorded, options.tune)
    else:
        replays, trials = (1, SMALLEST) if options.smoke else (options.replays, options.trials)
        summary |= {"replays": replays, "trials": trials, "rows": tables(recorded, replays, trials)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
