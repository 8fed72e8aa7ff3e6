"""A sweep, from records to a published winner."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raytune_llm.data.findings import many
from raytune_llm.errors import InputError
from raytune_llm.jobs import summary
from raytune_llm.jobs.help import called
from raytune_llm.jobs.reporting import reported, training_begins
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.stores.disk_full import explain_disk_full
from raytune_llm.sweep import status
from raytune_llm.sweep.plan import BASE
from raytune_llm.sweep.status import State

if TYPE_CHECKING:
    from raytune_llm.jobs.confirm import Confirmation
    from raytune_llm.jobs.prediction import Prediction
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.jobs.report.data import Section
    from raytune_llm.jobs.setup import Started
    from raytune_llm.sweep.axes import Point
    from raytune_llm.sweep.leaderboard import Row
    from raytune_llm.sweep.phases import Phase, Swept
    from raytune_llm.training.config import Outcome


def run_sweep(job: SweepJob) -> PublishResult:
    """Search, print and write the leaderboard, publish the winner. Raises InputError."""
    with reported(job, "sweep"):
        return _run(job)


def _run(job: SweepJob) -> PublishResult:
    from raytune_llm.jobs.bases import plan_of, start_bases

    began = time.monotonic()
    bases = start_bases(job)
    from raytune_llm.jobs.confirm import announced
    from raytune_llm.jobs.more_labels import check_more_labels
    from raytune_llm.jobs.prediction import Prediction
    from raytune_llm.jobs.tracking import sweep_begins

    for started in bases.values():
        check_more_labels(started)
    training_begins(started)
    job = started.job
    planned = plan_of(job)
    each = f" on each of {len(bases)} bases" if len(bases) > 1 else ""
    num_trials = len(planned.first) + job.sweep.search.num_trials(planned)
    print(f"{many(num_trials, 'trial')}{each}; {planned.sentence()}", flush=True)
    if (confirming := announced(job, started.prepared, planned)) is not None:
        print(confirming, flush=True)
    with explain_disk_full(job.home, job.run):
        phases = phases_of(bases)
        prediction = Prediction(next(iter(bases.values())), planned, phases[0].examples)
        sweep_begins(started)
        swept = run_trials(bases, phases, began, prediction)
        started.clock.lap("training")
        status.update(state=State.comparing)
        return finish(bases, swept, choose(job, bases, swept), prediction)


@dataclass(frozen=True)
class Chosen:
    """What the trials of a sweep come to."""

    rows: list[Row]
    """The leaderboard."""
    won: Outcome
    """A trial of the leaderboard, or a run of its configuration with a fresh seed."""
    confirmation: Confirmation | None
    """Where the first ones were trained again."""


def finish(
    bases: Mapping[str | None, Started[SweepJob]], swept: Swept, chosen: Chosen, prediction: Prediction
) -> PublishResult:
    """Publish the winner, tell trackers and programs, print the summary."""
    from raytune_llm.jobs.bases import tokens_of_bases
    from raytune_llm.jobs.more_labels import described, would_more_labels_help
    from raytune_llm.jobs.report.parts import of_confirmation, of_label_curve
    from raytune_llm.jobs.run_result import write_result
    from raytune_llm.jobs.tracking import sweep_ended

    won, confirmation = chosen.won, chosen.confirmation
    started = bases[won.trial.values.get(BASE)]
    published = publish_winner(started, swept, won, prediction)
    lines = prediction.lines()
    started.clock.lap("comparing and publishing")
    more: dict[str, Any] = {"trained_tokens": tokens_of_bases(bases, [*swept.outcomes, *swept.followed])}
    sections = []
    if confirmation is not None:
        again = many(sum(outcome.reports[-1].step for outcome in swept.followed), "step")
        lines = [("confirmed", confirmation.verdict), ("", f"by {many(len(swept.followed), 'trial')}, {again}"), *lines]
        more["confirmation"] = confirmation.described()
        sections.append(of_confirmation(confirmation))
    curve = would_more_labels_help(started, swept, won) if started.job.sweep.more_labels else None
    if curve is not None:
        more["label_curve"] = described(curve)
        sections.append(of_label_curve(curve))
    page = write_page(started, swept, chosen, published, sections)
    sweep_ended(bases, swept, won, published)
    write_result(started.job, started.prepared, swept.outcomes, won, published, more)
    print(summary.of_sweep(started, swept.outcomes, won, published, lines, page), flush=True)
    return published


def write_page(
    started: Started[SweepJob],
    swept: Swept,
    chosen: Chosen,
    published: PublishResult,
    sections: Sequence[Section],
) -> str | None:
    """Write the report of the run; its page's path, None where it could not be made."""
    from raytune_llm.jobs.report import collect
    from raytune_llm.jobs.report.write import write_run_report

    make = partial(collect.of_sweep, started, swept, chosen.rows, chosen.won, published, sections)
    return write_run_report(started.job.run_dir, make)


def phases_of(bases: Mapping[str | None, Started[SweepJob]]) -> list[Phase]:
    """The sweep base by base."""
    import ray

    from raytune_llm.sweep.phases import Phase

    return [
        Phase(
            base=base,
            config=own.job.trial_config(own.prepared.better, own.prepared.answering),
            examples=ray.put(own.prepared.examples),
            warm=warm_points(own.job),
        )
        for base, own in bases.items()
    ]


def run_trials(
    bases: Mapping[str | None, Started[SweepJob]], phases: Sequence[Phase], began: float, prediction: Prediction
) -> Swept:
    """Run the trials of a prepared sweep, base by base. Raises InputError when it was cancelled, or ended before any
    trial reported."""
    from raytune_llm.jobs.confirm import confirming_phases, contenders_of
    from raytune_llm.jobs.run_result import RESULT
    from raytune_llm.stores.storage import open_storage
    from raytune_llm.sweep import tuner
    from raytune_llm.sweep.steering import Drain

    started = next(iter(bases.values()))
    job = started.job
    open_storage(job.run_dir).delete(RESULT)
    swept = tuner.run(
        job.sweep,
        phases,
        use_gpu=started.use_gpu,
        interactive=started.interactive,
        control=f"{called('control')} run={job.name}/{job.run} home={job.home}",
        began=began,
        tokens_per_example=max(own.prepared.mean_tokens for own in bases.values()),
        predict=prediction.begin,
        follow=lambda outcomes, plan: confirming_phases(phases, contenders_of(bases, outcomes, plan)),
    )
    is_whole = swept.drained is None and not swept.is_resumed and len(bases) == 1
    prediction.trained([*swept.outcomes, *swept.followed], memory_bytes=swept.peak_bytes, is_whole=is_whole)
    again = f"the same command with run={job.run} resumes it"
    if swept.drained is Drain.cancelled:
        status.update(state=State.cancelled, note=again)
        raise InputError(f"the sweep was cancelled by a command; {again}")
    if swept.drained is not None and not swept.outcomes:
        raise InputError(f"{swept.why} before any trial reported; with more, {again}")
    return swept


def warm_points(job: SweepJob) -> list[Point]:
    """Winners of earlier sweeps that this one tries early; prints which."""
    from raytune_llm.jobs.bases import plan_of
    from raytune_llm.sweep import warm_start

    found = warm_start.warm_points(job.trial_config(), plan_of(job)) if job.sweep.warm_start else []
    if found:
        print(warm_start.text(found), flush=True)
    return [one.point for one in found]


def choose(job: SweepJob, bases: Mapping[str | None, Started[SweepJob]], swept: Swept) -> Chosen:
    """The leaderboard, which it prints and writes, and the winning trial. Raises InputError."""
    from raytune_llm.jobs.confirm import confirm, contenders_of
    from raytune_llm.stores.storage import open_storage
    from raytune_llm.sweep import leaderboard
    from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table

    objective = job.trial_config(next(iter(bases.values())).prepared.better).objective
    rows = leaderboard.leaderboard(swept.outcomes, swept.plan, objective)
    open_storage(job.run_dir).write("leaderboard.csv", leaderboard_csv(rows).encode())
    print("\n" + leaderboard_table(rows, objective.metric, shown=10), flush=True)
    winner = leaderboard.winner(swept.outcomes, objective)
    found = contenders_of(bases, swept.outcomes, swept.plan)
    confirmation = confirm(bases, found, swept.outcomes, swept.followed, swept.plan)
    if confirmation is None:
        return Chosen(rows, winner, None)
    print(f"\n{confirmation.text()}", flush=True)
    return Chosen(rows, confirmation.winner, confirmation)


def publish_winner(started: Started[SweepJob], swept: Swept, won: Outcome, prediction: Prediction) -> PublishResult:
    """Compare and publish it."""
    from raytune_llm.jobs.publish import publish
    from raytune_llm.sweep.backends.base import without_base

    job = started.job.with_values(without_base(swept.plan.values(won.trial.values)))
    parent = job.method.needs.init_adapter or f"{job.name}/{job.run}"
    return publish(job, started.prepared, won, parent=parent, use_gpu=started.use_gpu, forecast=prediction.record)
