"""From a started job to its forecast: what is rehearsed, what is known of its records, trials and cluster, and what the
registry's cards tell of earlier ones.

A sweep of `plan=true` rehearses in tasks of its own; one that runs is given the rehearsal of its first processes, or
none: then it is guessed from sizes, and corrected by earlier trainings.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from raytune_llm import cluster
from raytune_llm.jobs.compare import Question
from raytune_llm.jobs.drift import with_guard
from raytune_llm.jobs.held_out import held_out
from raytune_llm.jobs.metric import compared_questions
from raytune_llm.jobs.precompute import precompute_on_cluster
from raytune_llm.jobs.prepare import Prepared, with_sources
from raytune_llm.jobs.publish import systems_of
from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.jobs.setup import Started
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.registry import Registry
from raytune_llm.sweep.backends.base import RunnerInputs
from raytune_llm.sweep.backends.ray_train import RayTrain
from raytune_llm.sweep.experience import Kind, factors_of
from raytune_llm.sweep.forecast import (
    TRAIN_SECONDS,
    TUNE_SECONDS,
    Compared,
    Confirmed,
    Data,
    Device,
    Forecast,
    Workload,
    make_forecast,
)
from raytune_llm.sweep.guess import guess
from raytune_llm.sweep.plan import BATCH_SIZE, SIZE, STEPS, Plan
from raytune_llm.sweep.schedulers.none import NoStopping
from raytune_llm.sweep.simulation import Course, Layout, Length
from raytune_llm.training.config import Trial, TrialSpec
from raytune_llm.training.fits import footprint
from raytune_llm.training.rehearsal import Asked, Rehearsal, Script, device_name

REHEARSED_RECORDS = 64
"""Of each split, where frozen models must read what is rehearsed."""
MOST_LENGTHS = 2000
"""Trials whose points are looked at; further ones are taken to be like them."""


@dataclass(frozen=True)
class Subject:
    """A job with its trials: one, or those of a sweep."""

    started: Started[Any]
    plan: Plan
    inputs: RunnerInputs
    lengths: tuple[Length, ...]
    script: Script
    questions: dict[str, list[Question]]
    """What the comparison asks, by split."""

    @property
    def job(self) -> Any:
        return self.started.job

    @property
    def is_sweep(self) -> bool:
        return bool(self.plan.axes) or isinstance(self.job, SweepJob)


def only_trial(job: TrainJob) -> Plan:
    """The plan of a job that isn't a sweep."""
    return Plan({}, (job.tuning.steps,))


def subject_of(started: Started[Any], planned: Plan, examples: Any) -> Subject:
    """A job's trials. `examples`: ray.ObjectRef of those that are rehearsed."""
    job, prepared = started.job, started.prepared
    batch_size = max(planned.candidates(BATCH_SIZE) or [job.tuning.batch_size])
    size = max(planned.candidates(SIZE) or [job.tuning.adapter_size])
    config = job.trial_config(prepared.better, prepared.answering)
    largest = config.with_values({BATCH_SIZE: batch_size, SIZE: size, STEPS: planned.most_steps()})
    lengths = lengths_of(job, planned, batch_size)
    questions = {
        name: compared_questions(job, split, prepared.tokens)
        for name, split in prepared.encoded.items()
        if name != "train"
    }
    script = Script(
        spec=TrialSpec(config=largest, trial=Trial(id="rehearsal", values={}), milestones=planned.milestones),
        trial_steps=sum(length.steps for length in lengths),
        asked=asked_of(job, prepared, questions["eval"]),
    )
    inputs = RunnerInputs(
        config=config,
        plan=planned,
        examples=examples,
        use_gpu=started.use_gpu,
        num_trials=len(lengths),
        max_concurrent=job.sweep.max_concurrent if isinstance(job, SweepJob) else 1,
        compares_reports=False,
    )
    return Subject(started, planned, inputs, lengths, script, questions)


def lengths_of(job: TrainJob, planned: Plan, batch_size: int) -> tuple[Length, ...]:
    """How long each trial may be; one for a job that isn't a sweep."""
    if not isinstance(job, SweepJob):
        return (Length(steps=job.tuning.steps, size=1.0),)
    search, found = job.sweep.search, []
    count = search.num_trials(planned)
    proposed = (search.propose(planned, index, (), job.seed) for index in range(min(count, MOST_LENGTHS)))
    for point in (*planned.first, *proposed):
        values = {STEPS: job.tuning.steps, BATCH_SIZE: job.tuning.batch_size} | planned.values(point or {})
        found.append(Length(steps=int(values[STEPS]), size=values[BATCH_SIZE] / batch_size))
    return tuple(found[index % len(found)] for index in range(len(planned.first) + count))


def asked_of(job: TrainJob, prepared: Prepared, questions: Sequence[Question]) -> Asked | None:
    """Some of the questions of the comparison, at even distances."""
    if not questions:
        return None
    evaluation, tokens = job.evaluation, prepared.tokens
    step = max(1, len(questions) // (2 * evaluation.batch_size))
    return Asked(
        prompts=tuple(question.prompt_ids for question in questions[::step][: 2 * evaluation.batch_size]),
        stop_ids=tuple(tokens.stop_ids()),
        max_new_tokens=evaluation.longest_answer(tokens.max_tokens),
        batch_size=evaluation.batch_size,
        threads=cluster.cpus_of_a_node(),
    )


def forecast_of(
    subject: Subject, rehearsal: Rehearsal | None = None, *, start_seconds: float | None = None
) -> Forecast:
    """The forecast of a job by a rehearsal, else by sizes. `start_seconds`: None = what its start has taken."""
    found = guessed(subject) if rehearsal is None else rehearsal
    kind = Kind(subject.job.model.facts.revision_hash, name_of_method(subject.job), subject.is_sweep, found)
    cards = [version.card for version in Registry(subject.job.registry_dir).list()]
    factors, based_on = factors_of(kind, cards)
    workload = workload_of(subject, found, start_seconds)
    return make_forecast(workload, factors, based_on)


def workload_of(subject: Subject, rehearsal: Rehearsal, start_seconds: float | None) -> Workload:
    """All that the forecast of a job is made from."""
    job, started, inputs = subject.job, subject.started, subject.inputs
    scheduler = job.sweep.scheduler if isinstance(job, SweepJob) else NoStopping()
    backend = job.sweep.backend if isinstance(job, SweepJob) else RayTrain()
    layout = backend.layout(inputs, rehearsal)
    script, use_gpu = subject.script, started.use_gpu
    prints = footprint(
        script.spec.config,
        lora_rank=script.spec.config.tuning.adapter_size,
        device="cuda" if use_gpu else "cpu",
    )
    return Workload(
        lengths=subject.lengths,
        course=Course(
            eval_every=job.tuning.eval_every,
            milestones=subject.plan.milestones,
            scheduler=scheduler,
            patience=job.tuning.early_stopping.patience,
        ),
        layout=layout,
        rehearsal=rehearsal,
        data=data_of(subject),
        compared=compared_of(subject),
        confirmed=confirmed_of(subject),
        device=device_of(job, layout, use_gpu=use_gpu),
        batch_size=script.spec.config.tuning.batch_size,
        num_parameters=prints.num_parameters,
        num_trained=prints.num_trained,
        start_seconds=sum(started.clock.seconds().values()) if start_seconds is None else start_seconds,
        fixed_seconds=TUNE_SECONDS if subject.is_sweep else TRAIN_SECONDS,
        seed=job.seed,
    )


def data_of(subject: Subject) -> Data:
    """What is known of the examples."""
    prepared, answering = subject.started.prepared, subject.started.prepared.answering
    return Data(
        num_train=len(prepared.encoded.train.examples),
        num_eval=max(1, len(prepared.examples.eval)),
        tokens_per_example=prepared.mean_tokens,
        answered=0 if answering is None else len(answering.prompts),
        answer_tokens=answer_tokens(prepared, subject.questions["eval"]),
    )


def compared_of(subject: Subject) -> Compared:
    """What is compared after training."""
    job, prepared = subject.job, subject.started.prepared
    splits = {name: split for name, split in prepared.encoded.items() if name != "train"}
    drawn = [split.drawn(job.evaluation.max_examples, job.seed) for split in splits.values()]
    return Compared(
        num_systems=len(systems_of(job, Registry(job.registry_dir), "")),
        prompts=tuple(len({tuple(asked.prompt_ids) for asked in subject.questions[name]}) for name in splits),
        examples=tuple(len(split.examples) for split in drawn),
        answer_tokens=answer_tokens(prepared, subject.questions["eval"]),
    )


def confirmed_of(subject: Subject) -> Confirmed | None:
    """What is trained again at the end, as long as the longest trial may be; None where nothing is."""
    job, count = subject.job, len(subject.lengths)
    records = held_out(job, subject.started.prepared.encoded) if isinstance(job, SweepJob) and count > 1 else None
    if records is None:
        return None
    confirm = job.sweep.confirm
    top = min(confirm.top, count)
    longest = max(subject.lengths, key=lambda length: length.steps * length.size)
    lengths = (longest,) * (top * confirm.seeds)
    return Confirmed(lengths=lengths, num_systems=len(lengths) + top, num_examples=len(records[1].examples))


def answer_tokens(prepared: Prepared, questions: Sequence[Question]) -> float:
    """Mean length of the records' own answers, with the token that ends them."""
    if not questions:
        return 0.0
    tokenizer = prepared.tokens.tokenizer
    return 1.0 + mean(len(tokenizer(question.reference)["input_ids"]) for question in questions)


def device_of(job: TrainJob, layout: Layout, *, use_gpu: bool) -> Device:
    """What its trials hold of the cluster."""
    import ray

    each = job.scaling.num_workers * job.scaling.gpus_per_worker
    return Device(
        num_gpus=layout.num_processes * each if use_gpu else 0.0,
        num_nodes=sum(node["Alive"] for node in ray.nodes()),
        usd_per_hour=job.scaling.usd_per_hour,
    )


def guessed(subject: Subject) -> Rehearsal:
    """A rehearsal by sizes alone."""
    job, data = subject.job, data_of(subject)
    return guess(
        job.model.facts,
        batch_size=subject.script.spec.config.tuning.batch_size,
        num_eval=data.num_eval,
        tokens_per_example=data.tokens_per_example,
        answer_tokens=0.0 if subject.script.asked is None else subject.script.asked.max_new_tokens,
        use_gpu=subject.started.use_gpu,
        device=cluster_device(use_gpu=subject.started.use_gpu),
    )


def cluster_device(*, use_gpu: bool) -> str:
    """What trials compute on, by Ray's name of it."""
    if not use_gpu:
        return device_name(use_gpu=False)
    import ray

    kinds = [name for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    return ", ".join(sorted(name.partition(":")[2] for name in kinds)) or "GPU"


def name_of_method(job: TrainJob) -> str:
    """As the card has it."""
    from raytune_llm.methods.base import Method

    return name_of(job.method, Method)


def sample_of(started: Started[Any]) -> tuple[Any, float, float]:
    """(examples to rehearse with, with all that the method needs of frozen models; what those will take for all
    records, seconds; times as many eval records there are)."""
    job, encoded = started.job, started.prepared.encoded
    needs = job.method.needs
    begun = time.monotonic()
    guard = partial(with_guard, job=job, guard=started.prepared.guard, use_gpu=started.use_gpu)
    if not needs.reference and not needs.precomputes_teacher:
        found = precompute_on_cluster(job, encoded, use_gpu=started.use_gpu)
        return guard(with_sources(found, job, started.prepared.splits)), 0.0, 1.0
    cut = dataclasses.replace(
        encoded,
        train=encoded.train.drawn(REHEARSED_RECORDS, job.seed),
        eval=encoded.eval.drawn(REHEARSED_RECORDS, job.seed),
        test=encoded.test.drawn(0, job.seed),
    )
    found = precompute_on_cluster(job, cut, use_gpu=started.use_gpu)
    seconds = time.monotonic() - begun
    read = sum(len(split.examples) for split in (cut.train, cut.eval))
    total = sum(len(split.examples) for split in (encoded.train, encoded.eval, encoded.test))
    scale = len(started.prepared.examples.eval) / max(1, len(cut.eval.examples))
    return guard(found.examples), seconds * total / max(1, read), scale
