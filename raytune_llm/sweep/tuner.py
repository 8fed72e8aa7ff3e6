"""A sweep from its files to its outcomes, through pauses, restarts and bases.

Ray Tune (ray_tune.py) keeps no state that a restart needs: every start of a sweep, the first as well as one after its
driver was killed, gives a fresh controller the trials that have not ended (trial_store.py), which resume from their own
checkpoints, and replays to its scheduler what the others reported. A sweep over several bases runs them one after
another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from raytune_llm.stores.disk_full import raise_if_disk_full
from raytune_llm.sweep import status
from raytune_llm.sweep.backends.base import Runner, RunnerInputs, trial_spec, without_base
from raytune_llm.sweep.camera import Camera
from raytune_llm.sweep.commands import CommandDesk, extended, extensions, forget_cancel, is_cancelled, is_paused
from raytune_llm.sweep.control import Commands
from raytune_llm.sweep.judge import Judge
from raytune_llm.sweep.phases import Phase, Swept
from raytune_llm.sweep.plan import BASE, Plan, make_plan
from raytune_llm.sweep.progress import shown
from raytune_llm.sweep.queue import Proposals, TrialQueue, ended_trial, of_phase
from raytune_llm.sweep.ray_tune import build_scheduler, fit
from raytune_llm.sweep.schedulers.none import NoStopping
from raytune_llm.sweep.schedulers.replay import checkpointed
from raytune_llm.sweep.space import Sweep, first_points
from raytune_llm.sweep.spending import Prices, Spending
from raytune_llm.sweep.status import State
from raytune_llm.sweep.status_notes import StatusNotes
from raytune_llm.sweep.steering import Drain, Steering
from raytune_llm.sweep.trial_store import Ending, TrialRecord, TrialStore
from raytune_llm.training import checkpoints
from raytune_llm.training.config import Outcome, TrialConfig
from raytune_llm.training.outcome import read_outcome

COMPLETE = "complete"
ENDINGS = (None, Drain.unresolvable)
"""After which there may be trials that follow."""
SCHEDULER = "scheduler"
"""How a trial ended that nothing else has ended."""


@dataclass
class SweepRun:
    """A sweep on its way through its phases."""

    sweep: Sweep
    use_gpu: bool
    interactive: bool
    store: TrialStore
    spending: Spending
    control: str = ""
    """The command that steers it, for whoever watches it."""
    errors: dict[str, Exception] = field(default_factory=dict)
    """Of trials that failed in this start of the sweep."""
    drained: Drain | None = None
    why: str = ""
    predict: Callable[[Runner, float], float] | None = None
    """Asked before the first trials start, with the seconds that the budget leaves, for those that it must keep for
    comparing and publishing."""
    peak_bytes: int = 0
    """The most memory that a process of trials has held."""
    _running: tuple[str | None, Runner] | None = None
    """What ran the last trials, kept for those that follow, with their base."""

    def run_all(self, phases: Sequence[Phase]) -> None:
        """Run them one after another, unless one is drained."""
        for phase in phases:
            self.run(phase)
            if self.drained not in ENDINGS:
                return

    def run(self, phase: Phase) -> None:
        """Run a phase's trials to their ends, however often it is paused or restarted."""
        while not self._waits(phase):
            self._start(phase)
            if self.drained not in (Drain.paused, Drain.changed):
                return

    def plan(self, phase: Phase) -> Plan:
        """Which trials a phase needs, with the axes that commands have added."""
        return make_plan(phase.config, self._axes(phase), self.sweep.first)

    def _axes(self, phase: Phase) -> dict[str, Any]:
        axes = extended(self.sweep.axes(), extensions(self.store.run_dir))
        return {key: axis for key, axis in axes.items() if key != BASE}

    def _proposals(self, phase: Phase) -> Proposals:
        plan = self.plan(phase)
        return Proposals(
            store=self.store,
            plan=plan,
            search=self.sweep.search,
            seed=phase.config.seed,
            objective=phase.config.objective,
            own_batch_size=phase.config.tuning.batch_size,
            base=phase.base,
            first=first_points(self.sweep, plan),
            warm=phase.warm,
            points=phase.points,
            origin=phase.origin,
            most=self.sweep.budget.trials,
        )

    def _start(self, phase: Phase) -> None:
        """Run until all trials have ended or the sweep is drained."""
        config, plan = phase.config, self.plan(phase)
        proposals = self._proposals(phase)
        self._reopen(plan)
        waiting = proposals.unfinished()
        num_trials = len(waiting) + proposals.num_left()
        self.drained = None
        if not num_trials:
            return
        runner = self._runner(phase, plan, num_trials)
        self.spending.prices = replace(self.spending.prices, num_gpus=runner.num_gpus)
        try:
            if self.predict is not None:
                self.spending.count(time.monotonic())
                reserve_seconds = self.predict(runner, self.spending.seconds_left())
                self.spending.prices = replace(self.spending.prices, reserve_seconds=reserve_seconds)
                self.predict = None
            queue = TrialQueue(proposals, waiting, most_live=runner.max_concurrent, ended=lambda *about: None)
            desk = CommandDesk(Commands(self.store.run_dir), config, queue, self._axes(phase), runner.fits)
            steering = Steering(queue, runner, desk, self.spending)
            if self._sweep_of(phase).stop_when_unresolvable:
                steering.judge = Judge(queue)
            queue.ended = partial(self._note_end, phase, steering)
            self._fit(phase, runner, steering)
            self.drained, self.why = steering.drain, steering.why
            self.peak_bytes = max(self.peak_bytes, runner.peak_bytes())
        except BaseException:
            self.close()
            raise
        if self.drained not in ENDINGS:
            self.close()

    def _runner(self, phase: Phase, plan: Plan, num_trials: int) -> Runner:
        """What runs a phase's trials: the last ones' runner, where these are of the same base and fit it."""
        if self._running is not None and self._running[0] == phase.base and self._running[1].fits(plan):
            return self._running[1]
        self.close()
        inputs = RunnerInputs(
            config=phase.config,
            plan=plan,
            examples=phase.examples,
            use_gpu=self.use_gpu,
            num_trials=num_trials,
            max_concurrent=self.sweep.max_concurrent,
            compares_reports=self._sweep_of(phase).scheduler.order is not None,
        )
        runner = self.sweep.backend.start(inputs)
        self._running = phase.base, runner
        return runner

    def close(self) -> None:
        """Give the devices back."""
        if self._running is not None:
            self._running[1].close()
        self._running = None

    def _sweep_of(self, phase: Phase) -> Sweep:
        """The sweep that a phase's trials are of: those that follow it are not stopped."""
        return replace(self.sweep, scheduler=NoStopping(), stop_when_unresolvable=False) if phase.points else self.sweep

    def _reopen(self, plan: Plan) -> None:
        """Continue trials that were complete before the space had more steps."""
        for id, ending in list(self.store.endings.items()):
            is_done = ending.why != COMPLETE or self.store.records[id].origin.is_apart
            reports = () if is_done else checkpointed(f"{self.store.run_dir}/trials", id)
            if reports and plan.milestones and reports[-1].step < plan.milestones[-1]:
                self.store.reopen(id)

    def _fit(self, phase: Phase, runner: Runner, steering: Steering) -> None:
        """Have Ray Tune run the trials that the queue gives."""
        config, proposals = phase.config, steering.queue.proposals
        scheduler = build_scheduler(
            self._sweep_of(phase), config, proposals.plan, overlaps_decisions=runner.overlaps_decisions
        )
        for id in self.store.endings:
            if not self.store.records[id].origin.is_apart:
                scheduler.on_trial_add(None, ended_trial(id))
        for record in proposals.of_base():
            self._count(phase, steering, record)
        title = f"{config.name}/{config.run}{', again' if phase.points else ''}"
        camera = Camera(steering, title, self.control)
        with shown(camera, interactive=self.interactive) as callback:
            errors = fit(runner, scheduler, steering, config, [callback, StatusNotes(camera)])
        for id, error in errors.items():
            raise_if_disk_full(error, config.home, config.run)
            self.errors[id] = error

    def _count(self, phase: Phase, steering: Steering, record: TrialRecord) -> None:
        """Count what a trial of an earlier start has reported."""
        proposals, metric = steering.queue.proposals, phase.config.method.metric
        self.spending.batch_sizes[record.id] = proposals.batch_size(record.id)
        for report in checkpointed(f"{self.store.run_dir}/trials", record.id):
            self.spending.steps[record.id] = report.step
            proposals.hear(record.id, report.step, report.metrics[metric])

    def _note_end(
        self, phase: Phase, steering: Steering, id: str, result: Mapping[str, Any] | None, failed: bool
    ) -> None:
        """Note that a trial has ended, unless another start of the sweep is to continue it."""
        stopped, record = id in steering.desk.to_stop, self.store.records[id]
        steering.desk.to_stop.discard(id)
        if failed:
            return
        registered = (result or {}).get("checkpoint_path")
        ending = Ending(
            why="stopped" if stopped else SCHEDULER, checkpoint=None if registered is None else Path(registered).name
        )
        outcome = read_trial(phase.config, steering.queue.proposals.plan, record, ending)
        if (steering.drain is not None and outcome.ended == SCHEDULER) or (outcome.checkpoint is None and not stopped):
            return
        name = None if outcome.checkpoint is None else Path(outcome.checkpoint).name
        self.store.end(id, Ending(why=outcome.ended if name else "stopped", checkpoint=name))

    def _waits(self, phase: Phase) -> bool:
        """Wait while the sweep is paused; whether it is cancelled, now or by an earlier start that was killed."""
        if is_cancelled(self.store.run_dir):
            self.drained, self.why = Drain.cancelled, "cancelled by a command"
            return True
        if not is_paused(self.store.run_dir):
            return False
        print(f"paused: action=resume run={phase.config.name}/{phase.config.run} continues", flush=True)
        status.update(state=State.paused, num_running=0, eta_seconds=None)
        proposals = self._proposals(phase)
        queue = TrialQueue(proposals, proposals.unfinished(), most_live=None, ended=lambda *about: None)
        desk = CommandDesk(Commands(self.store.run_dir), phase.config, queue, self._axes(phase), lambda plan: True)
        while is_paused(self.store.run_dir):
            time.sleep(desk.commands.period_seconds)
            if desk.carry_out(time.monotonic()) == Drain.cancelled.value:
                self.drained, self.why = Drain.cancelled, "cancelled by a command"
                return True
        self.spending.skip(time.monotonic())
        status.update(state=State.running)
        return False

    def outcomes(self, phase: Phase) -> Iterator[Outcome]:
        """Of a phase's trials that have reported or failed."""
        plan, left = self.plan(phase), Ending(why=(self.drained or Drain.cancelled).value, checkpoint=None)
        for record in of_phase(self.store, phase.base, phase.origin):
            ending = self.store.endings.get(record.id, left)
            outcome = read_trial(phase.config, plan, record, ending, self.errors.get(record.id))
            if outcome.checkpoint is not None or record.id in self.errors:
                yield outcome


def run(
    sweep: Sweep,
    phases: Sequence[Phase],
    *,
    use_gpu: bool,
    interactive: bool,
    control: str = "",
    began: float | None = None,
    tokens_per_example: float = 0.0,
    predict: Callable[[Runner, float], float] | None = None,
    follow: Callable[[Sequence[Outcome], Plan], Sequence[Phase]] = lambda outcomes, plan: (),
) -> Swept:
    """Run all trials to their ends, or resume those of an interrupted run. Raises InputError when a disk was full, and
    for a budget that can't be counted.

    interactive: whether to draw it on the terminal; control: the command that steers it, to be shown there;
    began: when the command began, in seconds of time.monotonic(); tokens_per_example: of the training set, on average;
    predict: asked before the first trials start, with the seconds that the budget leaves, for those that comparing and
    publishing will take; follow: gives the phases that follow where nothing but the trials themselves, or that no more
    can be learned from them, has ended these.
    """
    config = phases[0].config
    prices = Prices(
        num_gpus=ray.cluster_resources().get("GPU", 0.0) if use_gpu else 0.0,
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        usd_per_hour=config.scaling.usd_per_hour,
        tokens_per_example=tokens_per_example,
        reserve_seconds=0.0,
    )
    now = time.monotonic()
    spending = Spending(config.run_dir, sweep.budget, prices)
    spending.start(now, began=now if began is None else began)
    store = TrialStore.read(config.run_dir)
    if store.records and not phases[0].origin.is_apart:
        print("resuming the interrupted sweep", flush=True)
    is_resumed = bool(store.records)
    sweeping = SweepRun(sweep, use_gpu, interactive, store, spending, control, predict=predict)
    try:
        sweeping.run_all(phases)
        drained, why = sweeping.drained, sweeping.why
        outcomes = [outcome for phase in phases for outcome in sweeping.outcomes(phase)]
        following = follow(outcomes, sweeping.plan(phases[0])) if drained in ENDINGS else ()
        sweeping.run_all(following)
    finally:
        sweeping.close()
    forget_cancel(config.run_dir)
    spending.count(time.monotonic())
    spending.save()
    return Swept(
        outcomes=outcomes,
        followed=[outcome for phase in following for outcome in sweeping.outcomes(phase)],
        plan=sweeping.plan(phases[0]),
        drained=drained if sweeping.drained in ENDINGS else sweeping.drained,
        why=why or sweeping.why,
        spent=spending.amounts(),
        is_resumed=is_resumed,
        peak_bytes=sweeping.peak_bytes,
    )


def read_trial(
    config: TrialConfig, plan: Plan, record: TrialRecord, ending: Ending, error: Exception | None = None
) -> Outcome:
    """How a trial ended, from its files."""
    spec = trial_spec(config, plan, without_base(record.values), record.id)
    spec = replace(spec, trial=replace(spec.trial, values=record.values))
    kept = ending.checkpoint
    checkpoint = checkpoints.latest(spec.directory) if kept is None else f"{spec.directory}/{kept}"
    return read_outcome(spec, checkpoint, error, ending.why)
