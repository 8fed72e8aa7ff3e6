"""Trials that each have their own copy of the base.

A trial of one worker runs inside its Tune trial, whose process stays warm for the next one; a trial of several
workers drives a Ray Train job of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raytune_llm.models.loading import fetched
from raytune_llm.sweep.backends.base import RunnerInputs, trial_spec, without_base
from raytune_llm.sweep.plan import Plan
from raytune_llm.training import checkpoints
from raytune_llm.training.config import Scaling, TrialConfig
from raytune_llm.training.ray_train import TrialSetup, run_trial, trainer_for
from raytune_llm.training.rehearsal import Script


class RayTrainRunner:
    """Runs a sweep, trial by trial."""

    overlaps_decisions = False

    def __init__(self, inputs: RunnerInputs) -> None:
        self.config, self.plan = inputs.config, inputs.plan
        scaling, use_gpu = inputs.config.scaling, inputs.use_gpu
        parameters = {"config": self.config, "plan": self.plan, "group": inputs.group, "use_gpu": use_gpu}
        trainable = tune.with_parameters(run_one, examples=[inputs.examples], **parameters)
        self.trainable = tune.with_resources(trainable, resources(scaling, use_gpu))
        self.max_concurrent = inputs.max_concurrent or concurrency(scaling, use_gpu)
        self.num_gpus = ray.cluster_resources().get("GPU", 0.0) if use_gpu else 0.0

    def fits(self, plan: Plan) -> bool:
        return plan.milestones == self.plan.milestones

    def hasten(self, trial_ids: Sequence[str]) -> None:
        """They report at their next evaluation: nothing reaches a trainer between two steps."""

    def rehearse(self, script: Script) -> None:
        """Its processes start with their trials."""

    def peak_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """Tune has ended its trials' processes already."""


def run_one(
    point: dict[str, Any], *, config: TrialConfig, plan: Plan, examples: list[Any], group: str, use_gpu: bool
) -> None:
    """A Tune trial."""
    setup = TrialSetup(
        spec=trial_spec(config, plan, without_base(point), tune.get_context().get_trial_id()),
        examples=examples[0],
        use_gpu=use_gpu,
        group=group,
        interactive=False,
        cpus=config.scaling.cpus_in_sweep,
    )
    if config.scaling.num_workers > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        trainer_for(setup, callbacks=[TuneReportCallback()]).fit()
        return

    directory = setup.spec.directory

    def report(metrics: dict[str, Any], folder: Path) -> None:
        write = partial(shutil.copytree, folder, dirs_exist_ok=True)
        checkpoints.publish(directory, metrics["step"], write, keep=())
        tune.report(metrics)

    stored = checkpoints.latest(directory)
    with nullcontext() if stored is None else fetched(stored) as resume:
        run_trial(setup, 0, 1, report, None if resume is None else tune.Checkpoint.from_directory(str(resume)))


def resources(scaling: Scaling, use_gpu: bool) -> dict[str, float]:
    """What Tune reserves for a trial: its one worker's share, or next to nothing for the driver of several."""
    if scaling.num_workers > 1:
        return {"cpu": 0.01}
    return {name.lower(): share for name, share in scaling.worker_resources(use_gpu=use_gpu).items()}


def concurrency(scaling: Scaling, use_gpu: bool) -> int | None:
    """Trials at a time. Several workers a trial need an explicit bound: nested placement would wait for itself."""
    if scaling.num_workers == 1:
        return None
    total = ray.cluster_resources()
    fits = total["CPU"] // (scaling.num_workers * scaling.cpus_in_sweep)
    if use_gpu:
        fits = min(fits, total["GPU"] // scaling.num_workers)
    return max(1, int(fits))
