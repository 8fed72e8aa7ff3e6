"""result.json: what a run came to, for programs. It is the last thing that a run writes: where it is, the version is
published and all reports are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raytune_llm.jobs.schema import TrainJob
from raytune_llm.stores.json import to_json
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.plan import BATCH_SIZE
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.jobs.publish import PublishResult

RESULT = "result.json"


def write_result(
    job: TrainJob,
    prepared: Prepared,
    outcomes: Sequence[Outcome],
    won: Outcome,
    published: PublishResult,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write result.json into the run's folder; outcomes: of all trials, won: of the published one. Metrics are those of
    its best report and, under the same names instead, those of the comparison. `more`: what else it came to."""
    assert won.best is not None
    result = {
        "version": published.version.reference,
        "promoted": published.promoted,
        "drift_bound": published.drift_bound,
        "verdicts": [verdict.text for verdict in published.verdicts],
        "contradiction": published.contradiction,
        "trial": won.trial.id,
        "values": won.trial.values,
        "step": won.best.step,
        "metric": job.method.metric,
        "metrics": {**won.best.metrics, **published.version.card.metrics},
        "forecast": published.version.card.forecast,
        "trained_tokens": trained_tokens(job, prepared, outcomes),
        **(more or {}),
    }
    if result["trained_tokens"] is None:
        del result["trained_tokens"]
    open_storage(job.run_dir).write(RESULT, to_json(result, indent=2).encode())


def trained_tokens(job: TrainJob, prepared: Prepared, outcomes: Sequence[Outcome]) -> int | None:
    """Tokens that all trials were trained on: their steps times batch times the mean length of an example; None for
    methods that sample what they learn from."""
    if job.method.needs.sampling:
        return None
    sizes = [outcome.trial.values.get(BATCH_SIZE, job.tuning.batch_size) for outcome in outcomes]
    steps = [outcome.reports[-1].step if outcome.reports else 0 for outcome in outcomes]
    return round(prepared.mean_tokens * sum(size * count for size, count in zip(sizes, steps, strict=True)))


def read_result(run_dir: str) -> dict[str, Any] | None:
    """What a run came to; None before its end."""
    storage = open_storage(run_dir)
    return json.loads(storage.read(RESULT)) if storage.exists(RESULT) else None


def already_published(job: TrainJob) -> str | None:
    """The version of a run that has ended, which is printed; None for a run that is to begin or to be resumed."""
    result = read_result(job.run_dir)
    if result is None:
        return None
    reference = str(result["version"])
    print(
        f"already published: {reference} (run={job.run} of {job.name} has ended; another run= tunes anew)", flush=True
    )
    return reference
