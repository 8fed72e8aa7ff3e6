"""Ray Tune's trials as light proxies of slots in pack actors.

A proxy joins an actor that has a free slot, hands each report on to Tune, and leaves when Tune stops it; the slot
is taken by the next trial at a step boundary. It imports no torch. An actor that died is started again by Ray and
joined again: the trial goes on from its checkpoint, and reports that Tune has seen are not given to it twice by the
same proxy. In the same way a trial moves, after a report, from a crowded actor to an emptier one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.sweep.space import Plan
from raytune_llm.training import checkpoints
from raytune_llm.training.config import Outcome, Report, Trial
from raytune_llm.training.history import History
from raytune_llm.training.packed.actor import PackActor
from raytune_llm.training.packed.trial_spec import TrialSpec

SIZE = "tuning.adapter_size"
PROXY_CPUS = 0.001
REJOIN_SECONDS = 0.5
GIVE_UP_SECONDS = 300.0
"""How long a trial waits for a dead actor to be back before it fails with the actor's error."""
CLOSE_SECONDS = 30.0


class PackedRunner:
    """Runs a sweep on pack actors."""

    trains_on = True

    def __init__(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool, *, slots: int) -> None:
        self.job, self.plan = job.of_trials(), plan
        total = ray.cluster_resources()
        each = job.scaling.cpus_per_worker
        num_actors = int(total["GPU"] if use_gpu else total["CPU"] // each)
        trials = job.sweep.search.num_trials(plan)
        wanted = min(slots, -(-trials // max(1, num_actors)))
        num_actors = max(1, min(num_actors, -(-trials // wanted)))
        sizes = dict(job.sweep.candidates()).get(SIZE, [job.tuning.adapter_size])
        actor = ray.remote(PackActor).options(
            num_cpus=max(0.0, each - 0.1),
            num_gpus=1 if use_gpu else 0,
            max_restarts=-1,
            max_concurrency=2 * wanted + 16,
        )
        arguments = {"wanted": wanted, "max_rank": max(sizes), "threads": max(1, int(each)), "use_gpu": use_gpu}
        arguments["together"] = job.sweep.scheduler.order is not None
        group = f"{job.name}-{job.run}"
        self.actors = [
            actor.remote(self.job, ray.cloudpickle.dumps(examples), group, speaks=index == 0, **arguments)
            for index in range(num_actors)
        ]
        capacities = ray.get([one.capacity.remote() for one in self.actors])
        self.max_concurrent = min(sum(capacities), job.sweep.max_concurrent or sum(capacities))
        print(f"packed: {sum(capacities)} slots on {num_actors} resident base{'s' * (num_actors > 1)}", flush=True)
        parameters = {"job": self.job, "plan": plan, "actors": self.actors}
        self.trainable = tune.with_resources(tune.with_parameters(proxy, **parameters), {"cpu": PROXY_CPUS})

    def outcome(self, result: Any) -> Outcome:
        trial = Trial(id=Path(result.path).name, values=dict(result.config))
        job = self.job.with_values(self.plan.values(result.config))
        stored = checkpoints.latest(f"{self.job.run_dir}/trials/{trial.id}")
        if stored is None:
            return Outcome(
                trial=trial, reports=(), best=None, checkpoint=None, seconds=0.0, ended=f"failed: {result.error}"
            )
        with checkpoints.fetch(stored) as folder:
            history = History.load(Path(folder))
        complete = "complete" if history.last.step >= job.tuning.steps else "scheduler"
        ended = history.why_stop(job.tuning.early_stopping) or complete
        return Outcome(
            trial=trial,
            reports=tuple(history.reports),
            best=history.best,
            checkpoint=stored,
            seconds=history.seconds,
            ended=f"failed: {result.error}" if result.error else ended,
        )

    def close(self) -> None:
        """Let the actors finish what they log, then end them."""
        ray.wait([actor.stop.remote() for actor in self.actors], num_returns=len(self.actors), timeout=CLOSE_SECONDS)
        for actor in self.actors:
            ray.kill(actor)


def proxy(config: dict[str, Any], *, job: TrainJob, plan: Plan, actors: list[Any]) -> None:
    """A Tune trial: reports what its slot reports."""
    trial = Trial(id=tune.get_context().get_trial_id(), values=dict(config))
    placement = TrialSpec(
        job=job.with_values(plan.values(config)),
        trial=trial,
        directory=f"{job.run_dir}/trials/{trial.id}",
        milestones=plan.milestones,
    )
    metric, best = job.method.metric, None
    for report in reports(placement, actors):
        history = History(metric=metric, reports=[*([best] if best else []), report])
        best = history.best
        tune.report({"step": report.step, "best_step": best.step, **report.metrics})


def reports(placement: TrialSpec, actors: list[Any]) -> Iterator[Report]:
    """The trial's reports as they come, each step once, over the deaths of actors. Leaves its slot when closed.

    Raises ray's error when an actor stays dead.
    """
    trial_id, last_step = placement.trial.id, 0
    lost_since: float | None = None
    while True:
        with ExitStack() as slot:
            try:
                actor = join(placement, actors)
                slot.callback(partial(actor.leave.remote, trial_id))
                ended, moves = None, False
                while ended is None and not moves:
                    new, ended = ray.get(actor.next.remote(trial_id))
                    lost_since = None
                    for report in new:
                        if report.step > last_step:
                            last_step = report.step
                            yield report
                    moves = bool(new) and ended is None and is_crowded(actor, actors)
                if not moves:
                    return
                slot.pop_all()
            except RayActorError:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > GIVE_UP_SECONDS:
                    raise
                time.sleep(REJOIN_SECONDS)


def is_crowded(actor: Any, actors: list[Any]) -> bool:
    """Whether another actor has two trials fewer, so that one from here is better off there: at the end of a sweep the
    last trials may all be on one, and the others idle."""
    try:
        free = ray.get([one.num_free.remote() for one in actors])
    except RayActorError:
        return False
    return max(free) - free[actors.index(actor)] >= 2


def join(placement: TrialSpec, actors: list[Any]) -> Any:
    """An actor that has taken the trial in; the emptiest first, waiting while all are full. A proxy of this trial that
    died may have left a seat behind, at which the others in that pack would wait for it until its lease runs out."""
    ray.get([actor.leave.remote(placement.trial.id) for actor in actors])
    while True:
        free = ray.get([actor.num_free.remote() for actor in actors])
        for _, actor in sorted(zip(free, actors, strict=True), key=lambda pair: -pair[0]):
            if ray.get(actor.join.remote(placement)):
                return actor
        time.sleep(REJOIN_SECONDS)
