"""From a trained trial to a registry version: compared with base, champion and the adapter that training began with,
described by its card, published, and promoted if it is better than all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

from raytune_llm.data.records import Record
from raytune_llm.errors import InputError
from raytune_llm.evaluation.compare import Verdict, VerdictKind, better
from raytune_llm.evaluation.report import contradiction
from raytune_llm.evaluation.systems import Systems
from raytune_llm.evaluation.terms import DRIFT, DRIFT_LOSS
from raytune_llm.jobs.compare import ComparisonResult, compare_on_cluster
from raytune_llm.jobs.comparison import Promote, Promotion
from raytune_llm.jobs.further import with_further
from raytune_llm.jobs.precompute import FrozenModels
from raytune_llm.jobs.prepare import Prepared
from raytune_llm.jobs.reports import write_report
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.jobs.stage_jobs import published_by
from raytune_llm.methods.base import Method
from raytune_llm.models import loading
from raytune_llm.stores.card import Card, Version
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.components import describe
from raytune_llm.stores.registry import CHAMPION, Registry
from raytune_llm.training.config import Outcome
from raytune_llm.training.objective import Report

NUM_PROBES = 4


@dataclass(frozen=True)
class PublishResult:
    """A published version and how it compared."""

    version: Version
    result: ComparisonResult
    """On the test set if there is one, else on the eval set."""
    split: str
    """test or eval: the set that `result` is about."""
    verdicts: tuple[Verdict, ...]
    """On the eval set, against each of the other systems: they decide the promotion."""
    contradiction: str | None
    """What on the eval set contradicts the first of them, where another measure is worse."""
    promoted: bool
    drift_bound: str | None = None
    """Why its drift keeps it from being promoted, where that does."""


def publish(
    job: TrainJob,
    prepared: Prepared,
    outcome: Outcome,
    *,
    parent: str | None,
    use_gpu: bool,
    forecast: Callable[[], dict[str, Any]] = dict,
) -> PublishResult:
    """Compare, describe, publish, promote. A run that was killed after it had published keeps that version. `forecast`:
    what the card keeps of the prediction, asked for after the comparison. Raises InputError when the trial left nothing
    to publish."""
    metric = job.method.metric
    if outcome.checkpoint is None or outcome.best is None or not math.isfinite(outcome.best.metrics[metric]):
        raise InputError(
            f"nothing to publish: no evaluation gave a finite {metric}; the run ended with {outcome.ended}"
        )
    registry = Registry(job.registry_dir)
    tuned = f"{outcome.checkpoint}/best"
    results = compare_splits(job, prepared, systems_of(job, registry, tuned), use_gpu=use_gpu)
    comparison = results["eval"].comparison
    verdicts = tuple(better(comparison, metric, reference=name) for name in comparison.systems[:-1])
    version = next((version for version in published_by(job) if is_made_by(version, job, outcome)), None)
    if version is None:
        with loading.fetched(tuned) as folder:
            prepared.tokens.tokenizer.save_pretrained(folder)
            card = dataclasses.replace(make_card(job, prepared, outcome, results, parent), forecast=forecast())
            version = registry.publish(job.name, folder, card)
    too_far = above_bound(job.promote, outcome.best)
    promoted = CHAMPION in version.aliases or (too_far is None and is_promoted(job.promote.when, verdicts))
    if promoted:
        version = registry.promote(version)
    for split, result in results.items():
        title = f"{version.reference}: base against tuned, {split} set"
        write_report(job.run_dir, split, result, version, title=title, metric=metric)
    split = reported_split(results)
    against = contradiction(comparison, metric)
    return PublishResult(version, results[split], split, verdicts, against, promoted, too_far)


def is_made_by(version: Version, job: TrainJob, outcome: Outcome) -> bool:
    """Whether a version is this trial's: another trial may have won before its sweep was extended."""
    assert outcome.best is not None
    config, own = version.card.config, describe(job)
    same = all(config[key] == own[key] for key in ("model", "data", "tuning", "adapter", "method", "seed"))
    return same and version.card.step == outcome.best.step


def systems_of(job: TrainJob, registry: Registry, tuned: str) -> Systems:
    """What the tuned model at a location is compared with, and itself, last."""
    others: dict[str, str | None] = {"base": None}
    if (champion := champion_of(registry, job)) is not None:
        others["champion"] = champion.path
    if (reference := job.method.needs.init_adapter) is not None:
        initial = registry.resolve(reference).path
        others |= {"initial": initial} if initial not in others.values() else {}
    return others | {"tuned": tuned}


def champion_of(registry: Registry, job: TrainJob) -> Version | None:
    """The present champion of the job's name, if it was tuned from the same base and so can be compared, by another
    run."""
    champions = [v for v in registry.list() if v.name == job.name and CHAMPION in v.aliases]
    champions = [version for version in champions if version.card.config["run"] != job.run]
    same_base = [v for v in champions if v.card.base_revision == job.model.facts.revision_hash]
    return next((version for version in same_base if version.card.kind == job.kind), None)


def compare_splits(
    job: TrainJob, prepared: Prepared, systems: Systems, *, use_gpu: bool
) -> dict[str, ComparisonResult]:
    """The systems on the eval set, and on the test set if there is one; a judge and the harness where the final report
    is about."""
    models = FrozenModels.of(job, use_gpu=use_gpu)
    results = {
        name: compare_on_cluster(
            models,
            systems,
            split,
            job.evaluation,
            split_name=name,
            tokens=prepared.tokens,
            seed=job.seed,
            allow_modules=job.allow_modules,
        )
        for name, split in prepared.encoded.items()
        if name != "train"
    }
    reported = reported_split(results)
    results[reported] = with_further(
        results[reported],
        job.model,
        systems,
        job.evaluation,
        getattr(prepared.encoded, reported).drawn(job.evaluation.max_examples, job.seed).records,
        home=job.home,
        run_dir=job.run_dir,
        split=reported,
        seed=job.seed,
        use_gpu=use_gpu,
    )
    return results


def reported_split(results: Mapping[str, ComparisonResult]) -> str:
    """The set that the final report is about."""
    return "test" if "test" in results else "eval"


def is_promoted(promotion: Promotion, verdicts: Sequence[Verdict]) -> bool:
    """Whether the version becomes champion."""
    wins = all(verdict.outcome is VerdictKind.better for verdict in verdicts)
    return promotion is Promotion.always or (promotion is Promotion.proven and wins)


def above_bound(promote: Promote, published: Report) -> str | None:
    """Why the drift of the published step forbids the promotion, or None."""
    drift, bound = published.metrics.get(DRIFT), promote.max_drift
    if bound is None or (drift is not None and drift <= bound):
        return None
    if drift is None:
        return f"{DRIFT} of its step isn't known, and promote.max_drift={bound:g}"
    return f"{DRIFT} {drift:.3g} is above promote.max_drift={bound:g}"


def make_card(
    job: TrainJob, prepared: Prepared, outcome: Outcome, results: Mapping[str, ComparisonResult], parent: str | None
) -> Card:
    """The version's description, by which it is served and compared; `results` by split."""
    assert outcome.best is not None
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for split, result in results.items():
        for name, systems in result.comparison.metrics.items():
            key = name.replace("eval/", f"{split}/", 1)
            metrics[key] = systems["tuned"].value
            intervals[key] = [systems["tuned"].low, systems["tuned"].high]
    metrics |= {name: outcome.best.metrics[name] for name in (DRIFT, DRIFT_LOSS) if name in outcome.best.metrics}
    return Card(
        kind=job.kind,
        base=job.model.name_or_path,
        base_revision=job.model.facts.revision_hash,
        base_loading=job.model.loading(),
        method=name_of(job.method, Method),
        metrics=metrics | {"train/loss": outcome.best.metrics["train/loss"], "time/seconds": outcome.seconds},
        intervals=intervals,
        config=describe(job),
        data=dict(prepared.splits.fingerprints),
        seed=job.seed,
        step=outcome.best.step,
        probes=probes(job.method, prepared.splits.eval),
        code_version=package_version("raytune-llm"),
        parent=parent,
    )


def probes(method: Method, records: Sequence[Record]) -> list[Any]:
    """A few different prompts, as plain JSON, by which a served version is checked."""
    prompts = [question[0] for question in map(method.question, records) if question]
    plain = [
        prompt if isinstance(prompt, str) else [dataclasses.asdict(m) for m in prompt]
        for prompt in dict.fromkeys(prompts)
    ]
    return sorted(plain, key=len)[:NUM_PROBES]
