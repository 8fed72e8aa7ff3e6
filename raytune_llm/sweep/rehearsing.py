"""Rehearsals where the trials of a sweep would run: in Ray tasks that reserve what a trial's process reserves.

On CPUs as many rehearse at once as share a node, since they share its memory and caches; of several GPUs one will do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raytune_llm.errors import InputError
from raytune_llm.sweep.backends.base import RunnerInputs
from raytune_llm.sweep.plan import SIZE
from raytune_llm.sweep.resources import concurrency
from raytune_llm.sweep.runner_packed import devices, layout, packs_on_a_node
from raytune_llm.sweep.simulation import Layout
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.rehearsal import Rehearsal, Script, together

MOST_TOGETHER = 4
PROXY_SECONDS = 1.1
"""Of starting a trial's proxy, one after another; measured on two cores."""
TURNOVER_SECONDS = 1.5
"""From a packed trial's end, by Ray Tune's decision, until the next one has joined."""
REPORT_SECONDS = 0.03
"""Of the driver's work for a report, which trials on its node feel."""
TRIAL_SECONDS = 2.0
"""Of starting a trial in a process that has had one before, without loading its base."""


def packed_places(inputs: RunnerInputs, slots: int) -> tuple[int, int]:
    """(packs, slots of each)."""
    num_devices, fill = devices(inputs)
    return layout(inputs.num_trials, num_devices=num_devices, slots=slots, fill=fill)


def packed_layout(inputs: RunnerInputs, rehearsal: Rehearsal, slots: int) -> Layout:
    """Where packed trials would run. A sweep of them rehearses, and then all first ones start together."""
    num_packs, wanted = packed_places(inputs, slots)
    each = min(wanted, rehearsal.capacity)
    first = min(inputs.num_trials, num_packs * each, inputs.max_concurrent or inputs.num_trials)
    return Layout(
        num_processes=num_packs,
        slots=each,
        max_concurrent=inputs.max_concurrent,
        first_seconds=rehearsal.start_seconds + rehearsal.spent_seconds + PROXY_SECONDS * first,
        next_seconds=TURNOVER_SECONDS,
        report_seconds=REPORT_SECONDS,
    )


def rehearse_packed(inputs: RunnerInputs, script: Script, *, slots: int, compile: bool | None) -> Rehearsal:
    """Packs rehearsed. Raises InputError when there is no memory for the base or a slot."""
    config, (num_packs, wanted) = inputs.config, packed_places(inputs, slots)
    cpus = config.scaling.cpus_in_sweep
    sharing = 1 if inputs.use_gpu else packs_on_a_node(num_packs, cpus)
    options = {
        "wanted": wanted,
        "max_lora_rank": max(inputs.plan.candidates(SIZE) or [config.tuning.adapter_size]),
        "device": "cuda" if inputs.use_gpu else "cpu",
        "compile": compile,
        "num_sharing": sharing,
    }
    task = ray.remote(_pack).options(num_cpus=max(0.0, cpus - 0.1), num_gpus=1 if inputs.use_gpu else 0)
    examples, shared = (
        ray.cloudpickle.dumps(inputs.examples),
        replace(script, trial_steps=script.trial_steps // num_packs),
    )
    threads = max(1, int(cpus))
    return _results(
        [
            task.remote(config, examples, _alone(shared, place), threads, time.time(), options)
            for place in range(min(sharing, MOST_TOGETHER))
        ]
    )


def _pack(
    config: TrialConfig, examples: bytes, script: Script, threads: int, asked_at: float, options: dict[str, Any]
) -> Rehearsal:
    """A pack in a process of its own."""
    from raytune_llm.training.packed.actor import load_pack
    from raytune_llm.training.packed.rehearsal import rehearse

    packed = load_pack(config, examples, threads, log=lambda line: None, **options)
    try:
        return rehearse(packed, script, start_seconds=time.time() - asked_at)
    finally:
        packed.close()


def trainer_layout(inputs: RunnerInputs, rehearsal: Rehearsal) -> Layout:
    """Where trials with bases of their own would run."""
    return Layout(
        num_processes=trainer_places(inputs),
        slots=1,
        max_concurrent=inputs.max_concurrent,
        first_seconds=rehearsal.start_seconds,
        next_seconds=TRIAL_SECONDS + rehearsal.load_seconds,
        report_seconds=REPORT_SECONDS,
    )


def trainer_places(inputs: RunnerInputs) -> int:
    """Trials at a time that the cluster holds, of those there are."""
    scaling, total = inputs.config.scaling, ray.cluster_resources()
    most = concurrency(scaling, inputs.plan, use_gpu=inputs.use_gpu)
    if most is None:
        needs = scaling.worker_resources(use_gpu=inputs.use_gpu)
        most = int(min(total.get(name, 0) // share for name, share in needs.items() if share))
    return max(1, min(most, inputs.num_trials, inputs.max_concurrent or inputs.num_trials))


def rehearse_trainers(inputs: RunnerInputs, script: Script, *, num_together: int, cpus: float) -> Rehearsal:
    """Trials with bases of their own rehearsed, so many at once. Of several workers a trial one is, with its share of
    the batch: what they say to each other is left out."""
    scaling = inputs.config.scaling
    share = max(1, script.spec.config.tuning.batch_size // scaling.num_workers)
    values = {"tuning.batch_size": share, "scaling.num_workers": 1}
    script = replace(script, spec=replace(script.spec, config=script.spec.config.with_values(values)))
    needs = scaling.worker_resources(use_gpu=inputs.use_gpu, cpus=cpus)
    task = ray.remote(_trainer).options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0))
    threads = max(1, int(cpus))
    return _results(
        [
            task.remote(_alone(script, place), [inputs.examples], inputs.use_gpu, threads, time.time())
            for place in range(num_together)
        ]
    )


def _trainer(script: Script, examples: list[Any], use_gpu: bool, threads: int, asked_at: float) -> Rehearsal:
    """A trial in a process of its own."""
    import torch

    from raytune_llm.training.trainer_rehearsal import rehearse_trainer

    torch.set_num_threads(threads)
    found = ray.get(examples[0])
    return rehearse_trainer(script, found, use_gpu=use_gpu, start_seconds=time.time() - asked_at)


def num_sharing(inputs: RunnerInputs) -> int:
    """Trials with bases of their own that share a GPU, or at most MOST_TOGETHER of those that share a node's CPUs."""
    places = trainer_places(inputs)
    return min(places, int(1 / inputs.config.scaling.gpus_per_worker) if inputs.use_gpu else MOST_TOGETHER)


def _alone(script: Script, place: int) -> Script:
    """The script of one of several that rehearse at once: only the first answers for the comparison."""
    return script if place == 0 else replace(script, asked=None)


def _results(tasks: Sequence[Any]) -> Rehearsal:
    """All rehearsals as one. Raises a task's InputError."""
    try:
        return together(ray.get(list(tasks)))
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from error
        raise
