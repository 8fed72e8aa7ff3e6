"""What may follow a comparison: a judge of the answers (jobs/judging.py), and public benchmarks in a Ray task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from raytune_llm import cluster
from raytune_llm.data.records import Record
from raytune_llm.errors import InputError, first_line, require
from raytune_llm.evaluation.harness_config import Harness
from raytune_llm.evaluation.systems import Systems
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.jobs.judging import judged
from raytune_llm.methods.base import Method
from raytune_llm.models.base import Base
from raytune_llm.models.loading import load_model

HARNESS = "Harness"
"""The title of its table."""


def check_further(evaluation: Evaluation, method: Method) -> None:
    """Refuse a judge without its key and tasks that can't be run, before anything is trained. Raises InputError."""
    gives_answers = "with a method whose models give answers, not scores"
    if evaluation.judge.open() is not None:
        require(not method.needs.score, "evaluation/judge", "openai", f"none; openai {gives_answers}")
    if evaluation.harness.tasks:
        from raytune_llm.evaluation.harness import load_tasks, task_manager

        require(
            not method.needs.score, "evaluation.harness.tasks", evaluation.harness.tasks, f"[]; others {gives_answers}"
        )
        load_tasks(evaluation.harness, task_manager(evaluation.harness))


def with_further(
    result: ComparisonResult,
    base: Base,
    systems: Systems,
    evaluation: Evaluation,
    records: Sequence[Record],
    *,
    home: str,
    run_dir: str,
    split: str,
    seed: int,
    use_gpu: bool,
) -> ComparisonResult:
    """The comparison of a split's records with the judge's verdicts and the harness's results, as far as they are asked
    for."""
    result = judged(result, evaluation, records, home=home, run_dir=run_dir, split=split, seed=seed)
    if not evaluation.harness.tasks:
        return result
    tuned = list(systems.values())[-1]
    return with_harness(result, base, tuned, evaluation, seed=seed, use_gpu=use_gpu)


def with_harness(
    result: ComparisonResult, base: Base, tuned: str | None, evaluation: Evaluation, *, seed: int, use_gpu: bool
) -> ComparisonResult:
    """The comparison with a table of the harness's tasks. What fails there is reported in its place: it never costs the
    rest of the comparison."""
    import ray

    from raytune_llm.evaluation.harness import table

    harness, started = evaluation.harness, time.monotonic()
    print(f"running {', '.join(harness.tasks)} by lm-evaluation-harness, base and tuned …", end="", flush=True)
    try:
        rows = cluster.as_task(run_on_both, use_gpu=use_gpu)(
            base, tuned, harness, num_draws=evaluation.bootstrap_draws, seed=seed, use_gpu=use_gpu
        )
    except (InputError, ray.exceptions.RayError) as error:
        text = first_line(getattr(error, "cause", None) or error)
        print(f"\n! lm-evaluation-harness failed: {text}", flush=True)
        return replace(result, tables={**(result.tables or {}), HARNESS: [["failed"], [text]]})
    print(f" {time.monotonic() - started:.0f} s", flush=True)
    tables = {**(result.tables or {}), HARNESS: table(rows)}
    for line in tables[HARNESS]:
        print("  " + "  ".join(line), flush=True)
    return replace(result, tables=tables, details={**result.details, "harness": [asdict(row) for row in rows]})


def run_on_both(
    base: Base, tuned: str | None, harness: Harness, *, num_draws: int, seed: int, use_gpu: bool
) -> list[Any]:
    """The harness's rows for a base and the tuned model at a location, one loaded after the other."""
    from raytune_llm.evaluation.harness import rows_of, run_tasks, task_manager

    tokenizer, manager = base.tokenizer(), task_manager(harness)
    found = [
        run_tasks(
            load_model(base, location, use_gpu=use_gpu), tokenizer, harness, manager, num_draws=num_draws, seed=seed
        )
        for location in (None, tuned)
    ]
    return rows_of(*found)
