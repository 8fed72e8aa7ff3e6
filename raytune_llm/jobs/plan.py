"""plan=true: what a job will take, by a rehearsal, on the terminal. Nothing is trained and nothing left behind."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytune_llm.data.findings import many
from raytune_llm.errors import InputError
from raytune_llm.jobs.clock import progress_lines
from raytune_llm.jobs.confirm import announced
from raytune_llm.jobs.cost import duration, size
from raytune_llm.jobs.forecast_findings import findings
from raytune_llm.jobs.forecasting import Subject, forecast_of, only_trial, sample_of, subject_of
from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.jobs.setup import Started
from raytune_llm.jobs.stage_jobs import stage_job
from raytune_llm.jobs.stages import prepare_job
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.forecast import TRAIN_SECONDS, Forecast
from raytune_llm.sweep.plan import BASE, Plan
from raytune_llm.sweep.tables import cell, short_key
from raytune_llm.training.rehearsal import Rehearsal

SHOWN_CHOICES = 8


def plan_job(job: TrainJob) -> str:
    """Rehearse a training, or a sweep on each of its bases: what it will take. Raises InputError as the job would."""
    if not isinstance(job, SweepJob):
        return plan_of(prepare_job(job), only_trial(job))
    from raytune_llm.jobs import bases

    texts = []
    for base, started in bases.start_bases(job).items():
        text = plan_of(started, bases.plan_of(started.job))
        texts.append(text if base is None else f"{BASE}={base}\n{text}")
    return "\n\n".join(texts)


def plan_of(started: Started[Any], planned: Plan) -> str:
    """The plan of a job whose records have been read."""
    import ray

    examples, frozen_seconds, scale = sample_of(started)
    subject = subject_of(started, planned, ray.put(examples))
    started.clock.lap("start")
    before = sum(started.clock.seconds().values()) + frozen_seconds
    refused, rehearsal = list[str](), None
    try:
        with progress_lines("rehearsing a few steps"):
            rehearsal = rehearsed(subject, scale)
            before += stage_seconds(subject, rehearsal)
    except InputError as error:
        refused.append(str(error))
    return plan_text(subject, forecast_of(subject, rehearsal, start_seconds=before), refused)


def rehearsed(subject: Subject, scale: float) -> Rehearsal:
    """A rehearsal where the job's trials would run, with so many times as many eval records. Raises InputError when the
    base doesn't fit there."""
    from raytune_llm import cluster
    from raytune_llm.sweep.rehearsing import rehearse_trainers

    job, inputs = subject.job, subject.inputs
    if isinstance(job, SweepJob):
        found = job.sweep.backend.rehearse(inputs, subject.script)
    else:
        scaling = job.scaling
        cpus = scaling.cpus_per_worker or cluster.cpus_for_a_run(scaling.num_workers, inputs.use_gpu)
        found = rehearse_trainers(inputs, subject.script, num_together=1, cpus=cpus)
    return replace(found, evaluations={count: scale * seconds for count, seconds in found.evaluations.items()})


def stage_seconds(subject: Subject, rehearsal: Rehearsal) -> float:
    """Of the trainings that come first, by the steps of this one: at most, without their comparisons."""
    stages = [stage_job(subject.job, stage) for stage in subject.job.method.needs.stages]
    each = rehearsal.step_seconds(1)
    evaluation = rehearsal.evaluation_seconds(1) / subject.job.tuning.eval_every
    return sum(TRAIN_SECONDS + rehearsal.start_seconds + job.tuning.steps * (each + evaluation) for job in stages)


def plan_text(subject: Subject, forecast: Forecast, refused: list[str]) -> str:
    """The plan as a table, its findings, the next command."""
    lines = list(rows(subject, forecast))
    width = max(len(name) for name, _ in lines)
    table = "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)
    budget = subject.job.sweep.budget if isinstance(subject.job, SweepJob) else None
    found = [*refused, *findings(forecast, budget)]
    marked = "".join(f"\n! {finding}" for finding in found) or "\nno findings"
    return f"\nplan of {subject.job.name}: nothing was trained\n{table}\n{marked}\n\nnext  {next_command()}"


def rows(subject: Subject, forecast: Forecast) -> Iterator[tuple[str, str]]:
    """The table's lines."""
    yield from of_trials(subject, forecast)
    yield from of_places(subject, forecast)
    yield from of_time(forecast)
    hours, usd = forecast.gpu_hours, forecast.usd
    price = "set scaling.usd_per_hour to have a price" if usd is None else f"{usd:.2f} US dollars"
    yield "cost", f"{hours:.2f} GPU-hours; {price}"
    yield "disk", f"at most {size(forecast.disk_bytes)} in {subject.job.home}: best and newest weights of each trial"


def of_trials(subject: Subject, forecast: Forecast) -> Iterator[tuple[str, str]]:
    """Which trials there are and what they read."""
    job, data, planned = subject.job, forecast.workload.data, subject.plan
    longest = max(length.steps for length in subject.lengths)
    if isinstance(job, SweepJob):
        yield "trials", f"{len(subject.lengths)} of {' × '.join(map(axis_text, planned.axes, planned.axes.values()))}"
        yield "", planned.sentence()
        confirming = announced(job, subject.started.prepared, planned)
        if confirming is not None:
            yield "", confirming
        possible = sum(length.steps for length in subject.lengths)
        stopped = f"about {forecast.expected.trial_steps:,.0f} of all trials, of {possible:,} if none is stopped"
        yield "steps", f"{stopped}; at most {longest:,} each"
    else:
        yield "steps", f"about {forecast.expected.trial_steps:,.0f}, at most {longest:,}"
    epochs = longest * forecast.workload.batch_size / data.num_train
    yield (
        "records",
        f"{many(data.num_train, 'record')} of {data.tokens_per_example:.0f} tokens on average, {epochs:.2g} epochs in "
        f"the longest trial; {forecast.tokens:,.0f} tokens through the base in all",
    )


def axis_text(key: str, axis: Axis) -> str:
    """A key with its values."""
    if not axis.choices:
        return f"{short_key(key)} {cell(axis.low)}–{cell(axis.high)}"
    more = ", …" if len(axis.choices) > SHOWN_CHOICES else ""
    ordered = sorted(axis.choices, key=lambda choice: (isinstance(choice, str), choice))
    return f"{short_key(key)} {', '.join(map(cell, ordered[:SHOWN_CHOICES]))}{more}"


def of_places(subject: Subject, forecast: Forecast) -> Iterator[tuple[str, str]]:
    """What runs where, and what it takes there."""
    layout, rehearsal = forecast.workload.layout, forecast.workload.rehearsal
    device = "a GPU" if subject.inputs.use_gpu else f"{subject.job.scaling.cpus_in_sweep:g} CPU"
    trials = f"with a base and {many(layout.slots, 'trial')} at a time"
    processes = f"{layout.num_processes} process{'es' if layout.num_processes > 1 else ''}"
    yield "where", f"{processes} on {device} each ({rehearsal.device}), {trials}"
    memory = rehearsal.memory
    if memory is not None:
        parts = f"base {size(memory.base)}, trials {size(memory.slots)}, activations {size(memory.activations)}"
        others = f", the process itself {size(memory.others)}" if memory.others else ""
        yield "memory", f"{size(memory.peak)} a process: {parts}{others}; {size(memory.free)} were free"
    timed = "; ".join(
        f"{seconds:.3g} s of {many(count, 'trial')}" for count, seconds in sorted(rehearsal.steps.items())
    )
    known = "measured" if rehearsal.source == "measured" else "guessed from sizes alone"
    yield "step", f"{timed} ({known}); an evaluation {rehearsal.evaluation_seconds(1):.3g} s of a trial"


def of_time(forecast: Forecast) -> Iterator[tuple[str, str]]:
    """How long it will take."""
    expected = forecast.expected
    parts = f"start {expected.start:.0f}, training {expected.training:.0f}"
    most = f", at most {duration(forecast.most_seconds)} if no trial stops for want of patience"
    has_patience = forecast.workload.course.patience is not None
    yield "time", f"about {duration(expected.seconds)}{most if has_patience else ''}"
    yield "", f"{expected.seconds:.0f} s: {parts}, comparing and publishing {expected.comparing:.0f}"
    if forecast.based_on:
        yield "", f"corrected by {many(forecast.based_on, 'earlier training')} of this base, method and device"


def next_command() -> str:
    """This command without plan=true."""
    given = sys.orig_argv
    place = next((i for i, argument in enumerate(given) if argument == sys.argv[0]), 0)
    script = f"python {sys.argv[0]}" if Path(sys.argv[0]).suffix == ".py" else Path(sys.argv[0]).name
    rest = [argument for argument in given[place + 1 :] if argument != "plan=true"]
    return f"{script} {shlex.join(rest)}".strip()
