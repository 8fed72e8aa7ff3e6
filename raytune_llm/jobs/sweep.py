"""A sweep, from records to a published winner."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raytune_llm.data.findings import many
from raytune_llm.errors import InputError
from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.jobs.stages import prepare_job
from raytune_llm.stores.disk_full import explain_disk_full

if TYPE_CHECKING:
    from raytune_llm.jobs.prediction import Prediction
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.jobs.setup import Started
    from raytune_llm.sweep.tuner import Swept
    from raytune_llm.training.config import Outcome


def run_sweep(job: SweepJob) -> PublishResult:
    """Search, print and write the leaderboard, publish the winner. Raises InputError."""
    from raytune_llm.sweep.plan import make_plan

    def check() -> None:
        from raytune_llm.jobs.prepare import check_sweep

        check_sweep(job, planned)

    began = time.monotonic()
    planned = make_plan(job.trial_config(), job.sweep.axes())
    started = prepare_job(job, check)
    job = started.job
    print(f"{many(job.sweep.search.num_trials(planned), 'trial')}; {planned.sentence()}", flush=True)
    with explain_disk_full(job.home, job.run):
        import ray

        from raytune_llm.jobs.prediction import Prediction

        prediction = Prediction(started, planned, ray.put(started.prepared.examples))
        swept = run_trials(started, began, prediction)
        started.clock.lap("training")
        won = choose(job, started, swept)
        published = publish_winner(started, swept, won, prediction)
        predicted = prediction.lines()
        started.clock.lap("comparing and publishing")
    print(summary.of_sweep(started, swept.outcomes, won, published, predicted), flush=True)
    return published


def run_trials(started: Started[SweepJob], began: float, prediction: Prediction) -> Swept:
    """Run the trials of a prepared sweep. Raises InputError when it was cancelled, or ended before any trial
    reported."""
    from raytune_llm.jobs.run_result import RESULT
    from raytune_llm.stores.storage import open_storage
    from raytune_llm.sweep import tuner
    from raytune_llm.sweep.steering import Drain

    job, prepared = started.job, started.prepared
    open_storage(job.run_dir).delete(RESULT)
    config = job.trial_config(prepared.better, prepared.answering)
    swept = tuner.run(
        job.sweep,
        [tuner.Phase(config=config, examples=prediction.examples)],
        use_gpu=started.use_gpu,
        interactive=started.interactive,
        began=began,
        tokens_per_example=prepared.mean_tokens,
        predict=prediction.begin,
    )
    is_whole = swept.drained is None and not swept.is_resumed
    prediction.trained(swept.outcomes, memory_bytes=swept.peak_bytes, is_whole=is_whole)
    again = f"the same command with run={job.run} resumes it"
    if swept.drained is Drain.cancelled:
        raise InputError(f"the sweep was cancelled by a command; {again}")
    if swept.drained is not None and not swept.outcomes:
        raise InputError(f"{swept.why} before any trial reported; with more, {again}")
    return swept


def choose(job: SweepJob, started: Started[SweepJob], swept: Swept) -> Outcome:
    """The winning trial; prints and writes the leaderboard. Raises InputError."""
    from raytune_llm.stores.storage import open_storage
    from raytune_llm.sweep import leaderboard
    from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table

    objective = job.trial_config(started.prepared.better).objective
    rows = leaderboard.leaderboard(swept.outcomes, swept.plan, objective)
    open_storage(job.run_dir).write("leaderboard.csv", leaderboard_csv(rows).encode())
    print("\n" + leaderboard_table(rows, objective.metric, shown=10), flush=True)
    return leaderboard.winner(swept.outcomes, objective)


def publish_winner(started: Started[SweepJob], swept: Swept, won: Outcome, prediction: Prediction) -> PublishResult:
    """Compare and publish it; then write result.json."""
    from raytune_llm.jobs.publish import publish
    from raytune_llm.jobs.run_result import write_result

    job = started.job.with_values(swept.plan.values(won.trial.values))
    parent = job.method.needs.init_adapter or f"{job.name}/{job.run}"
    published = publish(job, started.prepared, won, parent=parent, use_gpu=started.use_gpu, forecast=prediction.record)
    write_result(job, started.prepared, swept.outcomes, won, published, prediction.record())
    return published
