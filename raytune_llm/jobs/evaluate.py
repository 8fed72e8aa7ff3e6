"""A registered version compared with its base on records that no job has encoded yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm import cluster
from raytune_llm.data.encoding.encode import draw_indices, encode_split
from raytune_llm.data.files import load
from raytune_llm.data.records import Record
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.errors import require
from raytune_llm.evaluation import report
from raytune_llm.evaluation.compare import better
from raytune_llm.evaluation.systems import Systems
from raytune_llm.evaluation.terms import LOSS
from raytune_llm.jobs.compare import ComparisonResult, compare_systems
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.jobs.drift import base_answers, drift_of, make_guard
from raytune_llm.jobs.further import check_further, with_further
from raytune_llm.jobs.precompute import FrozenModels
from raytune_llm.jobs.report import collect
from raytune_llm.jobs.report.write import write_run_report
from raytune_llm.jobs.reports import write_report
from raytune_llm.jobs.schema import EvaluateJob
from raytune_llm.methods.base import Method
from raytune_llm.models.base import Base
from raytune_llm.stores.card import Version
from raytune_llm.stores.components import build
from raytune_llm.stores.registry import Registry


def evaluate_version(job: EvaluateJob) -> str:
    """Compare a registered version with its base on the job's test (else eval, else train) records; the terminal's
    text."""
    registry = Registry(job.registry_dir)
    version = registry.resolve(job.version)
    base, method = Base.from_loading(version.card.base_loading), build(Method, version.card.config["method"])
    splits = load(job.data, method.records, job.seed)
    max_tokens = base.facts.max_tokens(job.data.max_tokens)
    name, records = next((name, found) for name in ("test", "eval", "train") if (found := getattr(splits, name)))
    use_gpu = cluster.uses_gpu(None)
    check_further(job.evaluation, method)
    systems: Systems = {"base": None, "tuned": version.path}
    result = cluster.as_task(compare_records, use_gpu=use_gpu)(
        FrozenModels(base, method, job.registry_dir, job.evaluation.batch_size, use_gpu),
        dict(systems),
        name,
        records,
        job.evaluation,
        max_tokens=max_tokens,
        seed=job.seed,
        allow_modules=job.allow_modules,
    )
    result = with_further(
        result,
        base,
        systems,
        job.evaluation,
        [records[i] for i in draw_indices(len(records), job.evaluation.max_examples, job.seed)],
        home=job.home,
        run_dir=job.run_dir,
        split=name,
        seed=job.seed,
        use_gpu=use_gpu,
    )
    has_metric = method.metric in result.comparison.metrics
    metric = method.metric if has_metric else LOSS
    path = write_report(job.run_dir, name, result, version, title=f"{version.reference} on {name} set", metric=metric)
    verdict = better(result.comparison, metric)
    page = write_run_report(job.run_dir, lambda: collect.of_evaluation(job, version, name, result, metric, verdict))
    note = "" if has_metric else f" ({version.reference} was chosen by {method.metric}, which these records don't have)"
    drift = drift_line(job, version, base, method, max_tokens, use_gpu=use_gpu)
    return f"{report.table(result.comparison)}\n\n{verdict.text}{note}\n{drift}report  {page or path}"


def drift_line(
    job: EvaluateJob, version: Version, base: Base, method: Method, max_tokens: int, *, use_gpu: bool
) -> str:
    """How far the version is from its base on general prompts, in a line; '' where that isn't asked for, or of a reward
    model. Raises InputError for prompts that can't be used."""
    evaluation = job.evaluation
    if not evaluation.drift or method.needs.score:
        require(job.data.guard is None, "data.guard", job.data.guard, "null: drift isn't measured here")
        return ""
    tokens = Tokens(base.tokenizer(), max_tokens=max_tokens, is_encoder_decoder=base.facts.is_encoder_decoder)
    guard = make_guard(job.data, evaluation, tokens)
    reading: dict[str, Any] = {"batch_size": evaluation.batch_size, "use_gpu": use_gpu}
    examples = base_answers(job.home, base, guard, **reading)
    drift = cluster.as_task(drift_of, use_gpu=use_gpu)(base, version.path, examples, **reading)
    return f"drift   {guard.described(drift)}\n"


def compare_records(
    models: FrozenModels,
    systems: Systems,
    name: str,
    records: Sequence[Record],
    evaluation: Evaluation,
    *,
    max_tokens: int,
    seed: int,
    allow_modules: Sequence[str],
) -> ComparisonResult:
    """Encode the records that are drawn for the comparison, run the method's frozen models over them, and compare.
    Raises InputError for a record that can't be encoded, naming the split `name` and its number."""
    is_encoder_decoder = models.base.facts.is_encoder_decoder
    tokens = Tokens(models.tokenizer, max_tokens=max_tokens, is_encoder_decoder=is_encoder_decoder)
    chosen = draw_indices(len(records), evaluation.max_examples, seed)
    split = encode_split(name, records, tokens, models.method.encode, chosen)
    return compare_systems(
        models, systems, models.read(split), evaluation, tokens=tokens, seed=seed, allow_modules=allow_modules
    )
