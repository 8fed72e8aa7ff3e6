"""One trial as one Ray Train job: data-parallel workers, checkpoints to storage, resumed when a worker or node dies."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train as ray_train
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer

from raytune_llm.errors import InputError, first_line, roots
from raytune_llm.stores.disk_full import explain_disk_full
from raytune_llm.training.attempts import device_here, note_attempt
from raytune_llm.training.config import Outcome, TrialSpec
from raytune_llm.training.history import stored_step
from raytune_llm.training.interrupts import interruptible
from raytune_llm.training.outcome import read_outcome
from raytune_llm.training.progress import Progress, shown
from raytune_llm.training.tracking.background import flush
from raytune_llm.training.tracking.base import CompositeRun, Run
from raytune_llm.training.trial import Reporter, WorkerContext, fit
from raytune_llm.training.trial_log import start_run

LOST = (OutOfMemoryError, RayActorError, NodeDiedError, WorkerCrashedError)


@dataclass(frozen=True)
class TrialSetup:
    """All that a worker needs to run a trial."""

    spec: TrialSpec
    examples: Any
    """ray.ObjectRef of Examples."""
    use_gpu: bool
    group: str | None
    """The sweep it belongs to."""
    interactive: bool
    """Whether the driver draws a view of it on its terminal."""
    cpus: float
    """Of each worker."""


def train(setup: TrialSetup) -> Outcome:
    """Run the trial on its workers and wait for its end. Raises InputError when workers were lost too often, and
    ray.train's error when they failed otherwise."""
    config = setup.spec.config
    with explain_lost_worker(config.run, config.scaling.max_failures), explain_disk_full(config.home, config.run):
        with shown(config, use_gpu=setup.use_gpu, interactive=setup.interactive), interruptible():
            result = trainer_for(setup, callbacks=[]).fit()
        return outcome_of(setup.spec, result)


@contextmanager
def explain_lost_worker(run: str, max_failures: int) -> Iterator[None]:
    """Raise an error that only the loss of workers caused as InputError: their processes ended, a node died or memory
    ran out; all others pass unchanged."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = roots(error)
        if not all(isinstance(root, LOST) for root in found):
            raise
        lost = found[0]
        why = first_line(lost).partition(". ")[0].rstrip(".")
        hint = ", a smaller tuning.micro_batch_size takes less memory" if isinstance(lost, OutOfMemoryError) else ""
        raise InputError(
            f"a worker was lost and scaling.max_failures={max_failures} allows no further start: {why}. "
            f"The same command with run={run} resumes from its last checkpoint{hint}"
        ) from error


def outcome_of(spec: TrialSpec, result: Any) -> Outcome:
    """How a trial of Ray Train or Ray Tune ended. Only a checkpoint that Ray has registered counts: another one may be
    incomplete."""
    kept = result.checkpoint
    checkpoint = None if kept is None else f"{spec.directory}/{Path(kept.path).name}"
    return read_outcome(spec, checkpoint, result.error)


def trainer_for(setup: TrialSetup, callbacks: list[Any]) -> TorchTrainer:
    """The Ray Train job of a trial; one of the same name and storage resumes from its last checkpoint."""
    spec, scaling = setup.spec, setup.spec.config.scaling
    return TorchTrainer(
        worker,
        train_loop_config={"setup": ray.put(setup)},  # a reference: the controller needs none of its imports
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=setup.use_gpu,
            resources_per_worker=scaling.worker_resources(use_gpu=setup.use_gpu, cpus=setup.cpus),
        ),
        run_config=RunConfig(
            name=spec.trial.id,
            storage_path=f"{spec.config.run_dir}/trials",
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
    torch.set_num_threads(max(1, int(setup.cpus)))
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # Tune's trials name every checkpoint otherwise
    spec, is_first = setup.spec, rank == 0
    with tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True) as scratch:
        resume = Path(checkpoint.to_directory(f"{scratch}/resume")) if checkpoint else None
        run: Run = CompositeRun(())
        if is_first:
            from_step = stored_step(resume)
            run = start_run(spec, setup.group, from_step=from_step)
            note_attempt(spec.directory, device_here(use_gpu=setup.use_gpu), from_step=from_step)
        shown = is_first and setup.group is None
        progress = Progress(spec.config.tuning.steps, shown=shown, live=setup.interactive)
        ended = None
        try:
            ended = fit(
                spec,
                ray.get(setup.examples),
                WorkerContext(Path(scratch), rank, world_size, setup.use_gpu),
                report=report,
                run=run,
                progress=progress,
                resume=resume,
            )
        except SystemExit:  # how Ray Tune stops a trial
            ended = "stopped"
            raise
        finally:
            run.finish({"ended": ended or "failed"}, ended is None)
            flush()
