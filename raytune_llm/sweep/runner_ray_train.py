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
from raytune_llm.sweep.resources import concurrency, resources
from raytune_llm.training import checkpoints
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.ray_train import TrialSetup, run_trial, trainer_for
from raytune_llm.training.rehearsal import Script


class RayTrainRunner:
    """Runs a sweep, trial by trial."""

    hastens = False
    overlaps_decisions = False

    def __init__(self, inputs: RunnerInputs) -> None:
        self.config, self.plan = inputs.config, inputs.plan
        scaling, use_gpu = inputs.config.scaling, inputs.use_gpu
        parameters = {"config": self.config, "plan": self.plan, "group": inputs.group, "use_gpu": use_gpu}
        trainable = tune.with_parameters(run_one, examples=[inputs.examples], **parameters)
        self.trainable = tune.with_resources(trainable, partial(resources, scaling, use_gpu=use_gpu))
        most = [inputs.max_concurrent, concurrency(scaling, self.plan, use_gpu=use_gpu)]
        self.max_concurrent = min((bound for bound in most if bound is not None), default=None)
        self.num_gpus = ray.cluster_resources().get("GPU", 0.0) if use_gpu else 0.0

        self.where = f"a base a trial, on {f'{self.num_gpus:g} GPUs' if use_gpu else 'CPUs'}"

    def loads(self) -> tuple[()]:
        """Its trials aren't packed."""
        return ()

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
    spec = trial_spec(config, plan, without_base(point), tune.get_context().get_trial_id())
    scaling = spec.config.scaling
    setup = TrialSetup(
        spec=spec,
        examples=examples[0],
        use_gpu=use_gpu,
        group=group,
        interactive=False,
        cpus=scaling.cpus_in_sweep,
    )
    if scaling.num_workers > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        trainer_for(setup, callbacks=[TuneReportCallback()]).fit()
        return

    directory = spec.directory

    def report(metrics: dict[str, Any], folder: Path) -> None:
        write = partial(shutil.copytree, folder, dirs_exist_ok=True)
        checkpoints.publish(directory, metrics["step"], write, keep=())
        tune.report(metrics)

    stored = checkpoints.latest(directory)
    with nullcontext() if stored is None else fetched(stored) as resume:
        run_trial(setup, 0, 1, report, None if resume is None else tune.Checkpoint.from_directory(str(resume)))
