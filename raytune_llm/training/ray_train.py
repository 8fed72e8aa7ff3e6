"""One trial as one Ray Train job: data-parallel workers, checkpoints to storage, resumed when a worker or node dies."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import train as ray_train
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer

from raytune_llm.jobs.schema import TrainJob
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.history import History
from raytune_llm.training.progress import Progress
from raytune_llm.training.tracking.base import Run, RunInfo, start_all
from raytune_llm.training.tracking.jsonl import JSONL
from raytune_llm.training.trial import Reporter, WorkerContext, fit


@dataclass(frozen=True)
class TrialSetup:
    """All that a worker needs to run a trial."""

    job: TrainJob
    """With the trial's values applied."""
    trial: Trial
    examples: Any
    """ray.ObjectRef of Examples."""
    milestones: tuple[int, ...]
    use_gpu: bool
    group: str | None
    """The sweep it belongs to."""
    interactive: bool
    """Whether somebody watches: draw a progress bar."""

    @property
    def directory(self) -> str:
        return f"{self.job.run_dir}/trials/{self.trial.id}"


def train(setup: TrialSetup) -> Outcome:
    """Run the trial on its workers and wait for its end. Raises ray.train's error when it failed too often."""
    return outcome_of(setup, trainer_for(setup, callbacks=[]).fit())


def trainer_for(setup: TrialSetup, callbacks: list[Any]) -> TorchTrainer:
    """The Ray Train job of a trial; one of the same name and storage goes on where it was."""
    scaling = setup.job.scaling
    return TorchTrainer(
        worker,
        train_loop_config={"setup": ray.put(setup)},  # a reference: the controller needs none of its imports
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=setup.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, **({"GPU": 1} if setup.use_gpu else {})},
        ),
        run_config=RunConfig(
            name=setup.trial.id,
            storage_path=f"{setup.job.run_dir}/trials",
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=callbacks,
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train has set it to INFO, which repeats every report
    setup: TrialSetup = ray.get(config["setup"])
    context = ray_train.get_context()
    rank = context.get_world_rank()

    def report(metrics: dict[str, Any], folder: Path) -> None:
        ray_train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)

    run_trial(setup, rank, context.get_world_size(), report, ray_train.get_checkpoint())


def run_trial(setup: TrialSetup, rank: int, world_size: int, report: Reporter, checkpoint: Checkpoint | None) -> None:
    """Run the trial in this process, from its checkpoint if it has one."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # Tune's trials name every checkpoint otherwise
    with tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True) as scratch:
        place = WorkerContext(Path(scratch), rank, world_size, setup.use_gpu)
        resume = Path(checkpoint.to_directory(f"{scratch}/resume")) if checkpoint else None
        history = History.load(resume) if resume else None
        run = (
            start_run(setup, from_step=history.last.step if history else 0)
            if rank == 0
            else start_all([], info(setup, 0))
        )
        progress = Progress(
            setup.trial.id, setup.job.tuning.steps, shown=rank == 0 and setup.group is None, bar=setup.interactive
        )
        failed = True
        try:
            fit(
                setup.job,
                ray.get(setup.examples),
                place,
                milestones=setup.milestones,
                report=report,
                run=run,
                progress=progress,
                resume=resume,
            )
            failed = False
        finally:
            progress.close()
            run.finish({}, failed)


def start_run(setup: TrialSetup, from_step: int) -> Run:
    return start_all([JSONL(), *setup.job.tracking.values()], info(setup, from_step))


def info(setup: TrialSetup, from_step: int) -> RunInfo:
    return RunInfo(
        name=setup.trial.id,
        group=setup.group,
        config={"job": setup.job.name, **setup.trial.values},
        directory=setup.directory,
        from_step=from_step,
    )


def outcome_of(setup: TrialSetup, result: Any) -> Outcome:
    """How a trial of Ray Train or Ray Tune ended, read from its last checkpoint."""
    if result.checkpoint is None:
        return Outcome(
            trial=setup.trial, reports=(), best=None, checkpoint=None, seconds=0.0, ended=f"failed: {result.error}"
        )
    with result.checkpoint.as_directory() as folder:
        history = History.load(Path(folder))
    ended = history.why_stop(setup.job.tuning.early_stopping)
    if ended is None:
        ended = "complete" if history.last.step >= setup.job.tuning.steps else "scheduler"
    return Outcome(
        trial=setup.trial,
        reports=tuple(history.reports),
        best=history.best,
        checkpoint=f"{setup.directory}/{Path(result.checkpoint.path).name}",
        seconds=history.seconds,
        ended=f"failed: {result.error}" if result.error else ended,
    )
