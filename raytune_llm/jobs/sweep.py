"""A sweep, from records to a published winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.jobs.stages import prepare_job
from raytune_llm.stores.disk_full import explain_disk_full

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult


def run_sweep(job: SweepJob) -> PublishResult:
    """Search, print and write the leaderboard, publish the winner. Raises InputError."""
    from raytune_llm.sweep.space import plan

    def check() -> None:
        from raytune_llm.jobs.prepare import check_sweep

        check_sweep(job, planned)

    planned = plan(job, job.sweep)
    started = prepare_job(job, check)
    job = started.job
    print(f"{job.sweep.search.num_trials(planned)} trials; {planned.sentence()}", flush=True)
    with explain_disk_full(job):
        import ray

        from raytune_llm.jobs.publish import publish
        from raytune_llm.stores.storage import open_storage
        from raytune_llm.sweep import leaderboard, tuner
        from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table

        outcomes = tuner.run(job, planned, ray.put(started.prepared.examples), started.use_gpu, started.interactive)
        rows = leaderboard.leaderboard(outcomes, planned, job.method.metric)
        open_storage(job.run_dir).write("leaderboard.csv", leaderboard_csv(rows).encode())
        print("\n" + leaderboard_table(rows, job.method.metric, shown=10), flush=True)
        won = leaderboard.winner(outcomes, job.method.metric)
        published = publish(
            job.with_values(planned.values(won.trial.values)),
            started.prepared,
            won,
            parent=f"{job.name}/{job.run}",
            use_gpu=started.use_gpu,
        )
    print(summary.of_sweep(job, outcomes, won, published, started.earlier), flush=True)
    return published
