"""A comparison's answers, judged: on the driver, which has the judge's key, after the accelerator is given back.

What goes wrong with the judge never costs the rest of the comparison: it is reported in place of verdicts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from raytune_llm.data.records import Record
from raytune_llm.errors import InputError
from raytune_llm.evaluation.compare import compare
from raytune_llm.evaluation.judges.base import JudgeSession
from raytune_llm.evaluation.judging import tally
from raytune_llm.evaluation.judging.asking import Judging
from raytune_llm.evaluation.judging.cache import ReplyCache
from raytune_llm.evaluation.judging.pairs import Judged, human_pairs, pairs_of
from raytune_llm.evaluation.judging.report import WIN_RATE, JudgeReport, report_of, usage_text
from raytune_llm.jobs.compare import ComparisonResult
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.stores.storage import open_storage

OWN_WIN_RATE = "eval/external_win_rate"
"""The judge's win rate where the method has a win rate of its own, by its reward."""


def judged(
    result: ComparisonResult,
    evaluation: Evaluation,
    records: Sequence[Record],
    *,
    home: str,
    run_dir: str,
    split: str,
    seed: int,
) -> ComparisonResult:
    """The comparison with the judge's verdicts, the same where nobody judges. `records`: those that were compared.
    Writes judge-<split>.jsonl into the run's folder. Prints what it takes and took."""
    session = evaluation.judge.open()
    if session is None:
        return result
    if not result.answers:
        print(f"! {session.name} judges nothing: on the {split} set no answers were generated", flush=True)
        return result
    try:
        report = ask(session, result, evaluation, records, home=home, split=split, seed=seed)
    except InputError as error:
        print(f"! judging ended: {error}", flush=True)
        return replace(result, tables={**(result.tables or {}), "Judge": [["judging ended"], [str(error)]]})
    write_verdicts(run_dir, split, report.judgement.judged)
    return with_report(result, report, evaluation, seed)


def ask(
    session: JudgeSession,
    result: ComparisonResult,
    evaluation: Evaluation,
    records: Sequence[Record],
    *,
    home: str,
    split: str,
    seed: int,
) -> JudgeReport:
    """Have the judge compare the answers. Raises InputError for a damaged cache."""
    systems, num_examples = result.comparison.systems, len(result.answers)
    most = session.rules.max_examples or num_examples
    places = sorted(random.Random(seed).sample(range(num_examples), min(most, num_examples)))
    pairs = pairs_of(result.answers, places, systems) + human_pairs(records, session.rules.human_pairs)
    judging = Judging(session, pairs, ReplyCache(home, session.identity))
    print(f"judging {len(pairs)} pairs of answers of the {split} set by {session.name}", flush=True)
    print(f"  expected: {usage_text(judging.estimate(), at_most=True)}", flush=True)
    started = time.monotonic()
    report = report_of(
        session.name,
        judging.run(),
        num_examples=num_examples,
        are_labels=result.confusions is not None,
        num_draws=evaluation.bootstrap_draws,
        seed=seed,
    )
    for line in (*report.lines(), f"{time.monotonic() - started:.0f} s"):
        print(f"  {line}", flush=True)
    return report


def with_report(result: ComparisonResult, report: JudgeReport, evaluation: Evaluation, seed: int) -> ComparisonResult:
    """The comparison with the judge's tables and, unless it ended early, its win rate among the metrics."""
    tables = {**(result.tables or {}), **report.tables()}
    result = replace(result, tables=tables, details={**result.details, "judge": report.as_json()})
    systems = result.comparison.systems
    rates = tally.win_rates(report.judgement.judged, systems, len(result.answers))
    if rates is None or report.judgement.ended is not None:
        return result
    name = OWN_WIN_RATE if WIN_RATE in result.comparison.metrics else WIN_RATE
    measured = {system: {**result.measured[system], name: rates[system]} for system in systems}
    return replace(
        result, measured=measured, comparison=compare(measured, num_draws=evaluation.bootstrap_draws, seed=seed)
    )


def write_verdicts(run_dir: str, split: str, judged: Sequence[Judged]) -> None:
    """A line for each pair: prompt, answers, the verdict in both orders, the score of the first system."""
    lines = []
    for one in judged:
        orders = [None if choice is None else choice.value for choice in one.orders]
        lines.append(json.dumps({**asdict(one.pair), "orders": orders, "score": one.score}, ensure_ascii=False) + "\n")
    open_storage(run_dir).write(f"judge-{split}.jsonl", "".join(lines).encode())
