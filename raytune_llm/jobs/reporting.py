"""What a run shows of itself while it lasts: its status, for jobs/control.py, and the tuning slot that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raytune_llm.jobs import slots
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.sweep import status
from raytune_llm.sweep.control import Commands
from raytune_llm.sweep.status import Best, State
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.setup import Started


@contextmanager
def reported(job: TrainJob, command: str) -> Iterator[None]:
    """Keep the run's status while it is inside, and give its tuning slot back at the end. command: train or sweep. A
    KeyboardInterrupt leaves with how to resume the run."""
    try:
        if job.plan:  # nothing of it is kept
            yield
        else:
            with status.reporting(job.run_dir, command=command, name=job.name, run=job.run):
                yield
            refuse_commands(job.run_dir)
    except KeyboardInterrupt as error:
        if job.plan:
            raise
        raise KeyboardInterrupt(f"the same command with run={job.run} resumes it") from error
    finally:
        slots.release()


def refuse_commands(run_dir: str) -> None:
    """Answer what came too late for a sweep, which has ended."""
    commands = Commands(run_dir)
    for command in commands.pending():
        commands.answer(command, done=False, text="the sweep has ended")


def training_begins(started: Started[Any], **known: Any) -> None:
    """Note that a sound job's own trials begin, after its stages, and by which metric they are compared. known: more
    of its status."""
    objective = started.job.trial_config(started.prepared.better).objective
    status.update(
        state=State.running,
        metric=objective.metric,
        lower_is_better=objective.lower_is_better,
        **known,
    )


def training_ended(started: Started[Any], outcome: Outcome) -> None:
    """Note what the trial of a train run has come to."""
    best, metric = outcome.best, started.job.method.metric
    if best is None:
        return
    price, gpu_hours = started.job.scaling.usd_per_hour, outcome.reports[-1].metrics["cost/gpu_hours"]
    hours = gpu_hours if started.use_gpu else outcome.seconds / 3600
    status.update(
        best=Best(value=best.metrics[metric], trial=outcome.trial.id, step=best.step),
        num_ended=1,
        num_running=0,
        steps_done=outcome.reports[-1].step,
        gpu_hours=gpu_hours,
        usd=None if price is None else price * hours,
    )
