"""From a trained trial to a registry version: compared with base, champion and the adapter it began with, described by
its card, promoted if it has earned it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

from raytune_llm.data.files import load
from raytune_llm.data.records import Record
from raytune_llm.errors import InputError, input_errors
from raytune_llm.evaluation import report
from raytune_llm.evaluation.compare import Verdict, better
from raytune_llm.evaluation.compare import VerdictKind as Result
from raytune_llm.jobs import compare
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.jobs.prepare import Prepared
from raytune_llm.jobs.schema import EvaluateJob, Promotion, TrainJob
from raytune_llm.methods.base import Method
from raytune_llm.models import loading
from raytune_llm.models.base import Base
from raytune_llm.stores.card import Card, Version
from raytune_llm.stores.choices import name_of
from raytune_llm.stores.components import build, describe
from raytune_llm.stores.registry import CHAMPION, Registry
from raytune_llm.stores.storage import open_storage
from raytune_llm.training.config import Outcome

NUM_PROBES = 4


@dataclass(frozen=True)
class PublishResult:
    """What came of a job."""

    version: Version
    proof: ComparisonResult
    """On the test set if there is one, else on the eval set."""
    proven_on: str
    """test or eval."""
    verdicts: tuple[Verdict, ...]
    """On the eval set, against all others that were compared: what promotion went by."""
    promoted: bool


def publish_trial(
    job: TrainJob, prepared: Prepared, outcome: Outcome, *, parent: str | None, use_gpu: bool
) -> PublishResult:
    """Compare, publish, promote. Raises InputError when the trial left nothing to publish."""
    if outcome.checkpoint is None or outcome.best is None or not math.isfinite(outcome.best.metrics[job.method.metric]):
        raise InputError(f"nothing to publish, no evaluation was sound: the run ended with {outcome.ended}")
    print("comparing with the base …", flush=True)
    registry = Registry(job.registry_dir)
    champion = champion_of(registry, job)
    tuned = f"{outcome.checkpoint}/best"
    others = {"base": None} | ({"champion": champion.path} if champion else {})
    if (begun := job.method.needs.init_adapter) is not None:
        others["initial"] = registry.resolve(begun).path
    systems = others | {"tuned": tuned}
    splits = {"eval": prepared.splits.eval} | ({"test": prepared.splits.test} if prepared.splits.test else {})
    proofs = {
        name: compare_on_cluster(job.model, job, job.method, systems, records, prepared.tokens.max_tokens, use_gpu)
        for name, records in splits.items()
    }
    comparison = proofs["eval"].comparison
    verdicts = tuple(better(comparison, job.method.metric, reference=name) for name in comparison.systems[:-1])
    card = make_card(job, prepared, outcome, proofs, parent)
    with loading.fetched(tuned) as folder:
        prepared.tokens.tokenizer.save_pretrained(folder)
        published = registry.publish(job.name, folder, card)
    earned = all(verdict.outcome is Result.better for verdict in verdicts)
    promoted = job.promote is Promotion.always or (job.promote is Promotion.proven and earned)
    if promoted:
        published = registry.promote(published)
    for name, proof in proofs.items():
        write_report(
            job.run_dir,
            name,
            proof,
            f"{published.reference}: base against tuned, {name} set",
            job.method.metric,
            facts(published),
        )
    return PublishResult(
        published, proofs.get("test", proofs["eval"]), "test" if "test" in proofs else "eval", verdicts, promoted
    )


def evaluate_version(job: EvaluateJob) -> str:
    """Compare a registered version with its base on the job's test (else eval, else train) records; the terminal's
    text."""
    import ray

    registry = Registry(job.registry_dir)
    version = registry.resolve(job.version)
    base, method = Base.from_loading(version.card.base_loading), build(Method, version.card.config["method"])
    with input_errors():
        splits = load(job.data, method.records, job.seed)
        max_tokens = base.facts.max_tokens(job.data.max_tokens)
    name = next(
        name for name, records in (("test", splits.test), ("eval", splits.eval), ("train", splits.train)) if records
    )
    records: list[Record] = getattr(splits, name)
    use_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    proof = compare_on_cluster(
        base,
        job,
        method,
        {"base": None, "tuned": version.path},
        records,
        max_tokens,
        use_gpu,
    )
    path = write_report(job.run_dir, name, proof, f"{version.reference} on {name} set", method.metric, facts(version))
    verdict = better(proof.comparison, method.metric)
    return f"{report.table(proof.comparison)}\n\n{verdict.text}\nreport  {path}"


def compare_on_cluster(
    base: Base,
    job: TrainJob | EvaluateJob,
    method: Any,
    systems: Mapping[str, str | None],
    records: Sequence[Record],
    max_tokens: int,
    use_gpu: bool,
) -> ComparisonResult:
    """Compare in a Ray task, where the accelerators are."""
    import ray

    task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(compare.compare_systems)
    try:
        return ray.get(
            task.remote(
                base,
                method,
                dict(systems),
                list(records),
                job.evaluation,
                max_tokens=max_tokens,
                seed=job.seed,
                use_gpu=use_gpu,
                registry_dir=job.registry_dir,
                allow_modules=job.allow_modules,
            )
        )
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise InputError(str(error.cause)) from error
        raise


def champion_of(registry: Registry, job: TrainJob) -> Version | None:
    """The present champion of the job's name, if it was tuned from the same base and so can be compared."""
    champions = [v for v in registry.list() if v.name == job.name and CHAMPION in v.aliases]
    same_base = [v for v in champions if v.card.base_revision == job.model.facts.revision_hash]
    return next((version for version in same_base if version.card.kind == job.kind), None)


def make_card(
    job: TrainJob, prepared: Prepared, outcome: Outcome, proofs: Mapping[str, ComparisonResult], parent: str | None
) -> Card:
    """What the version says of itself."""
    assert outcome.best is not None
    metrics: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    for split, proof in proofs.items():
        for name, systems in proof.comparison.metrics.items():
            key = name.replace("eval/", f"{split}/", 1)
            metrics[key] = systems["tuned"].value
            intervals[key] = [systems["tuned"].low, systems["tuned"].high]
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
    """Prompts that differ, as plain JSON."""
    prompts = [asked[0] for asked in map(method.question, records) if asked]
    plain = [
        prompt if isinstance(prompt, str) else [dataclasses.asdict(m) for m in prompt]
        for prompt in dict.fromkeys(prompts)
    ]
    return sorted(plain, key=len)[:NUM_PROBES]


def facts(version: Version) -> dict[str, object]:
    """What a report's reader should know first."""
    card = version.card
    tuning = card.config["tuning"]
    knobs = {key: tuning[key] for key in ("adapter_size", "learning_rate_multiplier", "batch_size", "schedule")}
    return {"version": version.reference, "base": card.base, "method": card.method, "step": card.step, **knobs}


def write_report(
    run_dir: str, name: str, proof: ComparisonResult, title: str, metric: str, known: Mapping[str, object]
) -> str:
    """Write evaluation-<name>.md and .json into the run's folder; the path of the former."""
    storage = open_storage(run_dir)
    page = report.markdown(
        proof.comparison,
        title,
        known,
        metric=metric,
        confusions=proof.confusions,
        samples=proof.samples,
        tables=proof.tables,
    )
    storage.write(f"evaluation-{name}.md", page.encode())
    content = report.as_json(proof.comparison) | {"samples": [dataclasses.asdict(sample) for sample in proof.samples]}
    storage.write(f"evaluation-{name}.json", json.dumps(content, indent=2, ensure_ascii=False).encode())
    return f"{run_dir}/evaluation-{name}.md"
