"""sweep.more_labels=true: the winner's recipe trained on parts of its records, and what twice as many would bring."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from raytune_llm.data.mixture import epoch_indices
from raytune_llm.errors import require
from raytune_llm.jobs.schema import SweepJob, TrainJob
from raytune_llm.sweep.backends.base import without_base
from raytune_llm.sweep.label_curve import FEWEST_RECORDS, SHARES, LabelCurve, label_curve
from raytune_llm.sweep.plan import BASE, SUBSET

if TYPE_CHECKING:
    from raytune_llm.evaluation.systems import Systems
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.jobs.setup import Started
    from raytune_llm.sweep.phases import Swept
    from raytune_llm.training.config import Outcome


def check_more_labels(started: Started[SweepJob]) -> None:
    """Refuse too few records to train on parts of them. Raises InputError."""
    job, count = started.job, len(started.prepared.examples.train)
    smallest = min([*(job.sweep.axes()[SUBSET].candidates if SUBSET in job.sweep.axes() else []), job.data.subset])
    if job.sweep.more_labels:
        allowed = f"false with under {FEWEST_RECORDS} records: an eighth of them shows nothing"
        require(count * smallest >= FEWEST_RECORDS, "sweep.more_labels", True, allowed)


def would_more_labels_help(started: Started[SweepJob], swept: Swept, won: Outcome) -> LabelCurve | None:
    """Train the winner's recipe on parts of its records, print and return the curve; None where a part came to no
    result, as when the budget is used up."""
    job, own = started.job, without_base(won.trial.values)
    share = float(own.get(SUBSET, job.data.subset))
    parts = [{**own, SUBSET: part * share} for part in SHARES]
    print(f"\nwould more labels help? The winner's recipe on {', '.join(map(str, SHARES))} of its records", flush=True)
    outcomes = run_parts(started, parts, won.trial.values.get(BASE))
    found = {outcome.trial.values[SUBSET]: outcome.checkpoint for outcome in outcomes if outcome.best is not None}
    missing = [f"{part[SUBSET]:g}" for part in parts if found.get(part[SUBSET]) is None]
    if missing:
        print(f"no answer: data.subset={', '.join(missing)} came to no result", flush=True)
        return None
    winner = job.with_values(swept.plan.values(own))
    locations = [*(found[part[SUBSET]] for part in parts), won.checkpoint]
    counts = [num_records(winner.with_values({SUBSET: part}), started.prepared) for part in (*found, share)]
    systems = {f"{count} records": f"{folder}/best" for count, folder in zip(counts, locations, strict=True)}
    curve = curve_of(winner, started, counts, systems)
    print(f"\n{curve.text()}", flush=True)
    return curve


def run_parts(started: Started[SweepJob], points: list[dict[str, Any]], base: str | None) -> list[Outcome]:
    """The trials at these points, each to its end."""
    import ray

    from raytune_llm.sweep import tuner
    from raytune_llm.sweep.phases import Phase
    from raytune_llm.sweep.trial_store import Origin

    job, prepared = started.job, started.prepared
    config = job.trial_config(prepared.better, prepared.answering)
    examples = ray.put(prepared.examples)
    return tuner.run(
        job.sweep,
        [Phase(base=base, config=config, examples=examples, points=points, origin=Origin.labels)],
        use_gpu=started.use_gpu,
        interactive=started.interactive,
        tokens_per_example=prepared.mean_tokens,
    ).outcomes


def num_records(job: TrainJob, prepared: Prepared) -> int:
    """How many of the training records a job learns from."""
    data, examples = job.data, prepared.examples
    weights = [*data.weights.values()]
    epoch = epoch_indices(
        len(examples.train), subset=data.subset, weights=weights, sources=examples.sources, seed=job.seed
    )
    return len(set(epoch))


def curve_of(job: SweepJob, started: Started[SweepJob], counts: list[int], systems: Systems) -> LabelCurve:
    """The curve of method.metric over models that were trained on so many records, measured on the eval records that
    versions are compared on."""
    from raytune_llm.evaluation.compare import resamples
    from raytune_llm.jobs.compare import compare_on_cluster
    from raytune_llm.jobs.precompute import FrozenModels

    result = compare_on_cluster(
        FrozenModels.of(job, use_gpu=started.use_gpu),
        systems,
        started.prepared.encoded.eval,
        job.evaluation,
        split_name="eval",
        tokens=started.prepared.tokens,
        seed=job.seed,
        allow_modules=job.allow_modules,
    )
    metrics = [result.measured[name][job.method.metric] for name in systems]
    draws = list(resamples(metrics[0].num_examples, job.evaluation.bootstrap_draws, job.seed))
    resampled = np.stack([np.concatenate([metric.repeated(draw) for draw in draws]) for metric in metrics], -1)
    values = [metric.whole() for metric in metrics]
    return label_curve(job.method.metric, metrics[0].better, counts, values, resampled, job.seed)


def described(curve: LabelCurve) -> dict[str, Any]:
    """The curve as plain values, for result.json."""
    return {**asdict(curve), "helps": curve.helps}
