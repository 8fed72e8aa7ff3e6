"""A sweep, from records to a published winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raytune_llm.data.findings import many
from raytune_llm.jobs import summary
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.jobs.stages import prepare_job
from raytune_llm.stores.disk_full import explain_disk_full

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult


def run_sweep(job: SweepJob) -> PublishResult | None:
    """Search, print and write the leaderboard, publish the winner. Raises InputError."""
    from raytune_llm.sweep.plan import make_plan

    def check() -> None:
        from raytune_llm.jobs.prepare import check_sweep

        check_sweep(job, planned)

    planned = make_plan(job.trial_config(), job.sweep.axes())
    started = prepare_job(job, check)
    job = started.job
    if job.plan:
        from raytune_llm.jobs.plan import show_plan

        show_plan(started, planned)
        return None
    print(f"{many(job.sweep.search.num_trials(planned), 'trial')}; {planned.sentence()}", flush=True)
    with explain_disk_full(job.home, job.run):
        import ray

        from raytune_llm.jobs.publish import publish
        from raytune_llm.jobs.run_result import write_result
        from raytune_llm.stores.storage import open_storage
        from raytune_llm.sweep import leaderboard, tuner
        from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table

        prepared = started.prepared
        config = job.trial_config(prepared.better, prepared.answering)
        examples = ray.put(prepared.examples)
        outcomes = tuner.run(job.sweep, config, planned, examples, started.use_gpu, started.interactive)
        started.clock.lap("training")
        rows = leaderboard.leaderboard(outcomes, planned, config.objective)
        open_storage(job.run_dir).write("leaderboard.csv", leaderboard_csv(rows).encode())
        print("\n" + leaderboard_table(rows, job.method.metric, shown=10), flush=True)
        won = leaderboard.winner(outcomes, config.objective)
        published = publish(
            job.with_values(planned.values(won.trial.values)),
            prepared,
            won,
            parent=job.method.needs.init_adapter or f"{job.name}/{job.run}",
            use_gpu=started.use_gpu,
        )
        write_result(job, prepared, outcomes, won, published)
        started.clock.lap("comparing and publishing")
    print(summary.of_sweep(started, outcomes, won, published), flush=True)
    return published
