"""A base as an axis: sweep.space.model=[NAME,PATH]. One job a base, each with its own tokenizer, compared by a metric
that all of them share.

What a token is differs between tokenizers, so a mean over tokens says nothing about two bases. Bits per byte of the
same targets do, and so do metrics of answers and of whole records. All bases are measured on the same eval records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from raytune_llm.data.findings import many
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.errors import InputError
from raytune_llm.evaluation.terms import BITS_PER_BYTE, LOSS
from raytune_llm.jobs.config import model_values
from raytune_llm.jobs.data_report import write_data_report
from raytune_llm.jobs.held_out import seen_by_trials
from raytune_llm.jobs.run_result import trained_tokens
from raytune_llm.jobs.schema import DataJob, SweepJob
from raytune_llm.jobs.stages import prepare_job, with_frozen_outputs
from raytune_llm.methods.base import blank_eval_scores
from raytune_llm.models.base import Base
from raytune_llm.stores.components import build
from raytune_llm.stores.locations import with_absolute_paths
from raytune_llm.sweep.plan import BASE, Plan, make_plan

if TYPE_CHECKING:
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.jobs.setup import Started
    from raytune_llm.training.config import Outcome

KEY = f"sweep.space.{BASE}"


def start_bases(job: SweepJob) -> dict[str | None, Started[SweepJob]]:
    """The prepared job of each base, by its value of sweep.space.model; one by None where the sweep has one base. All
    of them are checked, and have the same metric and eval records, before anything is trained. Raises InputError."""
    (name, first), *others = jobs_of_bases(job).items()

    def check() -> None:
        from raytune_llm.jobs.prepare import check_knobs, check_sweep

        for own in (first, *(other for _, other in others)):
            check_knobs(own)
            check_sweep(own, plan_of(own))

    started = prepare_job(first, check)
    if name is None:
        return {None: started}
    started = by_shared_metric(started)
    found: dict[str | None, Started[SweepJob]] = {name: started}
    for place, (other, own) in enumerate(others, start=2):
        own = replace(own, data=started.job.data).with_values({"method.metric": started.job.method.metric})
        found[other] = start_another(started, own, str(other), place)
    return found


def plan_of(job: SweepJob) -> Plan:
    """Which trials the job needs on its base. Raises InputError for an axis that trials can't differ in."""
    axes = {key: axis for key, axis in job.sweep.axes().items() if key != BASE}
    return make_plan(job.trial_config(), axes, job.sweep.first)


def tokens_of_bases(bases: Mapping[str | None, Started[SweepJob]], outcomes: Sequence[Outcome]) -> int | None:
    """Tokens that all trials were trained on, each as its base's tokenizer counts them; None as for trained_tokens."""
    counts = [
        trained_tokens(
            own.job, own.prepared, [outcome for outcome in outcomes if outcome.trial.values.get(BASE) == base]
        )
        for base, own in bases.items()
    ]
    return None if None in counts else sum(filter(None, counts))


def jobs_of_bases(job: SweepJob) -> dict[str | None, SweepJob]:
    """The job of each base. Raises InputError for a method whose trials begin with what one base was tuned to."""
    axis, needs = job.sweep.axes().get(BASE), job.method.needs
    if axis is None:
        return {None: job}
    if needs.stages or needs.init_adapter is not None:
        raise InputError(f"{KEY} is not allowed: earlier stages and method.init_adapter belong to one base")
    return {name: replace(job, model=base) for name, base in bases_of(job.model, axis.choices).items()}


def bases_of(own: Base, names: Sequence[str]) -> dict[str, Base]:
    """The bases by name. The job's own is one of them; where its values differ from its file's, as model.dtype=float32
    makes them, those of the others do so, too. Raises InputError."""
    found = {name: with_absolute_paths(build(Base, model_values(name), key=f"{KEY}={name}: ")) for name in names}
    plain = next((base for base in found.values() if base.name_or_path == own.name_or_path), None)
    if plain is None:
        listed = f"{KEY}=[{', '.join(names)}]"
        raise InputError(f"model.name_or_path={own.name_or_path} is none of {listed}; add it there or leave model= out")
    given = {field.name: getattr(own, field.name) for field in fields(Base)}
    changed = {key: value for key, value in given.items() if value != getattr(plain, key)}
    return {name: replace(base, **changed) for name, base in found.items()}


def by_shared_metric(started: Started[SweepJob]) -> Started[SweepJob]:
    """The job with a metric that bases of different tokenizers share: its own, or bits per byte in place of a loss per
    token. Raises InputError where it can be neither."""
    from raytune_llm.jobs.metric import choose_metric

    job, prepared = started.job, started.prepared
    metric = shared_metric(job, prepared)
    if metric == job.method.metric:
        return started
    print(f"method.metric={metric}, as bases of different tokenizers don't share {job.method.metric}", flush=True)
    job = job.with_values({"method.metric": metric})
    better, answering = choose_metric(job, seen_by_trials(job, prepared.encoded), prepared.tokens)
    return replace(started, job=job, prepared=replace(prepared, better=better, answering=answering))


def shared_metric(job: DataJob, prepared: Prepared) -> str:
    """method.metric, or bits per byte where that is a loss per token. Raises InputError where it is another mean over
    tokens, or these records have no bits per byte."""
    from raytune_llm.jobs.metric import directed, directions_of

    metric = job.method.metric
    if prepared.answering is not None or job.method.needs.sampling:
        return metric
    table = ExampleTable.of(prepared.encoded.eval.examples)
    longest = table[int(np.argmax(np.sum([column.num_labels(1) for column in table.columns.values()], axis=0)))]
    is_encoder_decoder = job.model.facts.is_encoder_decoder
    per_token = blank_eval_scores(job.method, longest, is_encoder_decoder=is_encoder_decoder).token_means()
    if metric not in per_token:
        return metric
    shared = [name for name in directed(directions_of(job, longest)) if name not in per_token]
    if metric == LOSS and BITS_PER_BYTE in shared:
        return BITS_PER_BYTE
    answers = ["a metric of answers, as eval/accuracy or eval/token_f1"] if job.method.needs.answers else []
    raise InputError(
        f"method.metric={metric} is a mean over tokens, of which bases of different tokenizers have different ones; "
        f"allowed with {KEY}: {', '.join([*shared, *answers])}"
    )


def start_another(first: Started[SweepJob], job: SweepJob, name: str, place: int) -> Started[SweepJob]:
    """The job of another base, its records prepared for it; what the doctor finds of them that it didn't for the first
    base is printed. Raises InputError, also where one of the two can't be given all eval records of the other."""
    from raytune_llm.data.files import load
    from raytune_llm.jobs.prepare import prepare

    prepared = prepare(job, load(job.data, job.method.records, job.seed))
    known = {finding.text for finding in first.prepared.diagnosis.findings}
    lines = [finding.text for finding in prepared.diagnosis.findings if finding.text not in known]
    print("\n".join([f"{KEY}={name}: the records for this base", *(f"  {line}" for line in lines)]), flush=True)
    write_data_report(job, prepared.diagnosis, prepared.splits, f"{job.run_dir}/data-{place}")
    for split in ("eval", "test"):
        one, other = (getattr(found.encoded, split) for found in (first.prepared, prepared))
        if list(one.records) != list(other.records) or not np.array_equal(one.places, other.places):
            raise InputError(
                f"{KEY}={name} can be given {many(len(other.places), f'{split} record')} and the first base "
                f"{len(one.places)}, and bases are compared on the same ones; raise data.max_tokens, or leave out what "
                f"one of them can't be given: {job.run_dir}/data and data-{place} name it"
            )
    return with_frozen_outputs(replace(first, job=job, prepared=prepared))
