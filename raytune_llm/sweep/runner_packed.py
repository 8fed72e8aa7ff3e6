"""Ray Tune's trials as light proxies of slots in pack actors.

A proxy joins an actor that has a free slot, passes each report on to Tune, and leaves when Tune stops it; the slot
is taken by the next trial at a step boundary. It imports no torch. When its actor dies, it joins one that lives, or the
same one when Ray has restarted it: the trial resumes from its checkpoint, and the proxy passes on no report a second
time. In the same way a trial moves, after a report, from a crowded actor to an emptier one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError

from raytune_llm import cluster
from raytune_llm.data.examples import Example
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.errors import InputError
from raytune_llm.sweep.backends.base import RunnerInputs, trial_spec, without_base
from raytune_llm.sweep.plan import BATCH_SIZE, SIZE, Plan
from raytune_llm.sweep.snapshot import Load
from raytune_llm.training.config import TrialConfig, TrialSpec
from raytune_llm.training.objective import Report
from raytune_llm.training.packed.actor import DeviceLostError, PackActor
from raytune_llm.training.rehearsal import Rehearsal, Script, together

PROXY_CPUS = 0.001
REJOIN_SECONDS = 0.5
GIVE_UP_SECONDS = 300.0
"""How long a trial waits for a dead actor to be back before it fails with the actor's error."""
MOST_DEATHS = 2
"""Of its actors that a trial survives without a new report in between; at the next one it fails, for it may be the
cause."""
LOST = (RayActorError, DeviceLostError)
CLOSE_SECONDS = 30.0


class PackedRunner:
    """Runs a sweep on pack actors."""

    hastens = True
    overlaps_decisions = True

    def __init__(self, inputs: RunnerInputs, *, slots: int, compile: bool | None) -> None:
        self.config, self.plan = inputs.config, inputs.plan
        num_devices, fill = devices(inputs)
        num_actors, wanted = layout(inputs.num_trials, num_devices=num_devices, slots=slots, fill=fill)
        cpus = self.config.scaling.cpus_in_sweep
        actor = ray.remote(PackActor).options(
            num_cpus=max(0.0, cpus - 0.1),
            num_gpus=1 if inputs.use_gpu else 0,
            max_restarts=-1,
            max_concurrency=2 * wanted + 16,
        )
        sizes = self.plan.candidates(SIZE) or [self.config.tuning.adapter_size]
        self.max_lora_rank, self.num_gpus = max(sizes), float(num_actors if inputs.use_gpu else 0)
        arguments = {"wanted": wanted, "max_lora_rank": self.max_lora_rank, "threads": max(1, int(cpus))}
        arguments |= {"use_gpu": inputs.use_gpu, "compile": compile, "start_together": inputs.compares_reports}
        arguments["num_sharing"] = 1 if inputs.use_gpu else packs_on_a_node(num_actors, cpus)
        examples = ray.cloudpickle.dumps(inputs.examples)
        self.actors = [
            actor.remote(self.config, examples, inputs.group, logs_plan=index == 0, **arguments)
            for index in range(num_actors)
        ]
        asked_at = time.monotonic()
        try:
            capacities = ray.get([one.capacity.remote() for one in self.actors])
        except RayTaskError as error:
            self._end_actors()  # else they hold their CPUs or GPUs for as long as the error is kept
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise
        self.start_seconds = time.monotonic() - asked_at
        self._capacities, self._loads = capacities, [Load(0, slots) for slots in capacities]
        self._asked: list[Any] = []
        device = "a GPU" if inputs.use_gpu else f"{cpus:g} CPU{'s' * (cpus != 1)}"
        self.where = f"{num_actors} pack{'s' * (num_actors > 1)} on {device}{' each' * (num_actors > 1)}"
        self.max_concurrent = min(sum(capacities), inputs.max_concurrent or sum(capacities))
        print(f"packed: {sum(capacities)} slots on {num_actors} resident base{'s' * (num_actors > 1)}", flush=True)
        parameters = {"config": self.config, "plan": self.plan, "actors": self.actors}
        self.trainable = tune.with_resources(tune.with_parameters(proxy, **parameters), {"cpu": PROXY_CPUS})

    def loads(self) -> Sequence[Load]:
        """An actor that is dead for the moment is as full as it was."""
        ready, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        if len(ready) == len(self._asked):
            for index, answer in enumerate(self._asked):
                with suppress(RayActorError, RayTaskError):
                    slots = self._capacities[index]
                    self._loads[index] = Load(slots - ray.get(answer), slots)
            self._asked = [actor.num_free.remote() for actor in self.actors]
        return tuple(self._loads)

    def fits(self, plan: Plan) -> bool:
        return plan.milestones == self.plan.milestones and max(plan.candidates(SIZE), default=0) <= self.max_lora_rank

    def hasten(self, trial_ids: Sequence[str]) -> None:
        for actor in self.actors:
            actor.hasten.remote(trial_ids)

    def rehearse(self, script: Script) -> Rehearsal:
        """On all actors at once, as their trials will run; the first one answers for the comparison, too."""
        share = replace(script, trial_steps=script.trial_steps // len(self.actors))
        scripts = [share, *[replace(share, asked=None)] * (len(self.actors) - 1)]
        asked = zip(self.actors, scripts, strict=True)
        found = ray.get([actor.rehearse.remote(one, self.start_seconds) for actor, one in asked])
        return together(found)

    def peak_bytes(self) -> int:
        return max((peak for _, peak in answers(self.actors, lambda actor: actor.peak_bytes.remote())), default=0)

    def close(self) -> None:
        """Let the actors finish what they log, then end them."""
        ray.wait([actor.stop.remote() for actor in self.actors], num_returns=len(self.actors), timeout=CLOSE_SECONDS)
        self._end_actors()

    def _end_actors(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def devices(inputs: RunnerInputs) -> tuple[int, int]:
    """(GPUs, or groups of CPUs, that the cluster has; trials that fill one)."""
    total = ray.cluster_resources()
    if not inputs.use_gpu:
        return int(total["CPU"] // inputs.config.scaling.cpus_in_sweep), 1
    examples = ray.get(inputs.examples).train
    return int(total["GPU"]), trials_that_fill_a_gpu(inputs.config, inputs.plan, examples)


def trials_that_fill_a_gpu(config: TrialConfig, plan: Plan, examples: Sequence[Example]) -> int:
    """Trials whose steps together have the tokens that saturate a pass, at the largest batch size of the sweep.

    A GPU is busy computing, rather than launching kernels and reading weights, from 2,048 tokens a pass at 1 B
    parameters and 1,024 at 8 B, so that packing beyond gains little.
    """
    saturating = 2048 * (1e9 / config.model.facts.num_parameters) ** (1 / 3)
    tokens = int(ExampleTable.of(examples).lengths().sum())
    batch_size = max(plan.candidates(BATCH_SIZE) or [config.tuning.batch_size])
    return math.ceil(saturating * len(examples) / (tokens * batch_size))


def layout(num_trials: int, *, num_devices: int, slots: int, fill: int) -> tuple[int, int]:
    """(actors, slots of each). A device gets `fill` trials before another one is used; once all are, trials spread
    evenly. No more actors than devices, and than hold all trials at once; no more than `slots` each."""
    num_actors = max(1, min(num_devices, -(-num_trials // min(slots, fill))))
    wanted = min(slots, -(-num_trials // num_actors))
    return min(num_actors, -(-num_trials // wanted)), wanted


def packs_on_a_node(num_actors: int, cpus: float) -> int:
    """How many packs of so many CPUs may share a node's memory."""
    return max(1, min(num_actors, int(cluster.largest_node() // cpus)))


def proxy(point: dict[str, Any], *, config: TrialConfig, plan: Plan, actors: list[Any]) -> None:
    """A Tune trial: reports what its slot reports."""
    spec = trial_spec(config, plan, without_base(point), tune.get_context().get_trial_id())
    best: Report | None = None
    for report in reports(spec, actors):
        best = config.objective.best([report] if best is None else [best, report])
        assert best is not None
        tune.report({"step": report.step, "best_step": best.step, **report.metrics})


def reports(spec: TrialSpec, actors: list[Any]) -> Iterator[Report]:
    """The trial's reports in order, each step once, also when actors die. Leaves its slot when closed.

    Raises the actor's error when all stay dead or die again and again, and RuntimeError when an actor fails the trial.
    """
    trial_id, last_step = spec.trial.id, 0
    deaths = Deaths()
    while True:
        with ExitStack() as slot:
            try:
                actor = join(spec, actors)
                deaths.is_joined = True
                slot.callback(partial(actor.leave.remote, trial_id))
                ended, moves = None, False
                while ended is None and not moves:
                    new, ended = ray.get(actor.next.remote(trial_id))
                    for report in new:
                        if report.step > last_step:
                            last_step = report.step
                            deaths.clear()
                            yield report
                    moves = bool(new) and ended is None and is_crowded(actor, actors)
                if ended is not None and ended.startswith("failed"):
                    raise RuntimeError(ended)
                if not moves:
                    return
                slot.pop_all()
            except LOST as error:
                deaths.count(error)
                time.sleep(REJOIN_SECONDS)


@dataclass
class Deaths:
    """How often and since when a trial has lost its actor, without a new report in between."""

    is_joined: bool = False
    """Whether it has been admitted since the last loss."""
    number: int = 0
    since: float | None = None

    def clear(self) -> None:
        self.number, self.since = 0, None

    def count(self, error: BaseException) -> None:
        """Raises the error when the trial should give up."""
        now = time.monotonic()
        if self.is_joined:
            self.number, self.since, self.is_joined = self.number + 1, now, False
        self.since = self.since or now
        if self.number > MOST_DEATHS or now - self.since > GIVE_UP_SECONDS:
            raise error


def is_crowded(actor: Any, actors: list[Any]) -> bool:
    """Whether another actor has two trials fewer, so that one from here is better off there: at the end of a sweep the
    last trials may all be on one, and the others idle."""
    free = dict(answers(actors, lambda one: one.num_free.remote()))
    return actor in free and max(free.values()) - free[actor] >= 2


def join(spec: TrialSpec, actors: list[Any]) -> Any:
    """An actor that has admitted the trial; the emptiest first, waiting while all are full. A proxy of this trial that
    died may have left a slot taken, and the others in that pack would wait for it until its lease runs out.

    Raises the last actor's error when all are dead.
    """
    answers(actors, lambda actor: actor.leave.remote(spec.trial.id))
    while True:
        free = answers(actors, lambda actor: actor.num_free.remote())
        for actor, _ in sorted(free, key=lambda pair: -pair[1]):
            if ray.get(actor.join.remote(spec)):
                return actor
        time.sleep(REJOIN_SECONDS)


def answers(actors: list[Any], call: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    """Each actor that is alive with its answer. Raises the last one's error when none is."""
    found, lost = [], None
    for actor, answer in [(actor, call(actor)) for actor in actors]:
        try:
            found.append((actor, ray.get(answer)))
        except RayActorError as error:
            lost = error
    if not found:
        assert lost is not None
        raise lost
    return found
