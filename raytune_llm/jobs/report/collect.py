"""A run's report, collected from what the terminal's summary is made of, and from the files of its trials."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

from raytune_llm.data.findings import many
from raytune_llm.evaluation.compare import Verdict, VerdictKind
from raytune_llm.jobs.comparison import Promotion
from raytune_llm.jobs.invocation import command_line
from raytune_llm.jobs.report.data import (
    Amount,
    CommandLine,
    Knob,
    Rank,
    RunReport,
    Section,
    Sentence,
    TrialRun,
    finite,
)
from raytune_llm.jobs.report.knobs import knobs_of
from raytune_llm.jobs.report.parts import card_text, compared, data_facts, followed, next_commands
from raytune_llm.jobs.report.spans import trial_run
from raytune_llm.jobs.schema import EvaluateJob, TrainJob
from raytune_llm.methods.base import Method
from raytune_llm.stores.choices import name_of
from raytune_llm.sweep.leaderboard import Row
from raytune_llm.sweep.tables import cell, short_key
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.compare import ComparisonResult
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.jobs.setup import Started
    from raytune_llm.stores.card import Version
    from raytune_llm.sweep.phases import Swept

TONES = {
    VerdictKind.better: "sound",
    VerdictKind.worse: "problem",
    VerdictKind.alike: "warning",
    VerdictKind.undefined: "problem",
}
PREDICTED = {
    "start": ("start", "s"),
    "training": ("training", "s"),
    "comparing": ("comparing and publishing", "s"),
    "trial_steps": ("steps of all trials", ""),
    "memory_bytes": ("memory at the most", "bytes"),
}
"""Of a forecast's amounts: name and unit."""
SPENT = {"hours": "hours", "gpu_hours": "GPU-hours", "usd": "US dollars", "tokens": "tokens trained on"}


def of_sweep(
    started: Started[Any],
    swept: Swept,
    rows: Sequence[Row],
    won: Outcome,
    published: PublishResult,
    sections: Sequence[Section] = (),
) -> RunReport:
    """Of a sweep whose winner is published; `rows`: its leaderboard."""
    knobs = knobs_of(swept.plan, [outcome.trial.values for outcome in swept.outcomes])
    costs = {SPENT[key]: amount(value) for key, value in swept.spent.items() if value}
    found = _of_run(started, [*swept.outcomes, *swept.followed], won, published, knobs)
    ranks = [rank(row) for row in rows]
    found["verdicts"] += [section.verdict for section in sections if section.verdict is not None]
    return RunReport(**found, command="sweep", leaderboard=ranks, costs=costs, sections=sections)


def of_training(started: Started[Any], outcome: Outcome, published: PublishResult) -> RunReport:
    """Of a train run whose version is published."""
    gpu_hours = outcome.reports[-1].metrics.get("cost/gpu_hours", 0.0) if outcome.reports else 0.0
    costs = {"hours": amount(outcome.seconds / 3600)} | ({"GPU-hours": amount(gpu_hours)} if gpu_hours else {})
    found = _of_run(started, [outcome], outcome, published, ())
    return RunReport(**found, command="train", costs=costs)


def of_evaluation(
    job: EvaluateJob, version: Version, split: str, result: ComparisonResult, metric: str, verdict: Verdict
) -> RunReport:
    """Of a version that was compared with its base on other records."""
    card = version.card
    facts = {"version": version.reference, "base": named(card.base), "method": card.method}
    facts |= {"records": f"{result.comparison.num_examples:,} of the {split} set", "seed": str(job.seed)}
    return RunReport(
        command="evaluate",
        name=job.name,
        run=job.run,
        version=version.reference,
        state="",
        created=_now(),
        facts=facts | {"code": package_version("raytune-llm")},
        verdicts=[_sentence(verdict, split)],
        metric=metric,
        lower_is_better=None,
        compared=[compared(result, split, metric)],
        commands=_commands(job, (), version),
        card=card_text(version),
    )


def amount(value: float) -> str:
    """A number with three digits that count, or all of a large one's."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def rank(row: Row) -> Rank:
    """A row of the leaderboard."""
    metrics = {name: finite(value) for name, value in row.best.metrics.items()}
    marks = ("Pareto",) if row.pareto else ()
    return Rank(trial=row.trial, values=row.values, step=row.best.step, metrics=metrics, ended=row.ended, marks=marks)


def named(base: str) -> str:
    """A base by its id on the hub, or the end of its location; the card has all of it."""
    return base if base.count("/") < 2 else "/".join(base.rstrip("/").split("/")[-2:])


def _of_run(
    started: Started[Any],
    outcomes: Sequence[Outcome],
    won: Outcome,
    published: PublishResult,
    knobs: Sequence[Knob],
) -> dict[str, Any]:
    """What a report of one trial and one of many have in common."""
    assert won.best is not None
    job, version, split = started.job, published.version, published.split
    objective = job.trial_config(started.prepared.better).objective
    trials = [trial_run(job.run_dir, outcome, objective) for outcome in outcomes]
    verdicts = [_sentence(verdict, "eval") for verdict in published.verdicts]
    if published.contradiction is not None:
        verdicts.append(Sentence(text=f"{published.contradiction} (eval set)", tone="warning"))
    return {
        "name": job.name,
        "run": job.run,
        "version": version.reference,
        "state": "champion" if published.promoted else _why_not(job.promote),
        "created": version.card.created,
        "facts": _facts(started, trials, version, won),
        "verdicts": verdicts,
        "metric": objective.metric,
        "lower_is_better": objective.lower_is_better,
        "knobs": knobs,
        "winner": won.trial.id,
        "winner_values": dict(won.trial.values),
        "trials": trials,
        "compared": [compared(published.result, split, objective.metric)],
        "amounts": _amounts(version.card.forecast),
        "seconds": started.clock.seconds(),
        "data": data_facts(started.prepared.diagnosis),
        "commands": _commands(job, followed(job, version), version),
        "card": card_text(version),
    }


def _facts(started: Started[Any], trials: Sequence[TrialRun], version: Version, won: Outcome) -> dict[str, str]:
    job, card = started.job, version.card
    assert won.best is not None
    spans = [span for trial in trials for span in trial.spans]
    devices = dict.fromkeys(f"{span.device} of {span.host}" for span in spans if span.is_exact)
    steps = sum(trial.points[-1].step for trial in trials if trial.points)
    found = {
        "base": f"{named(card.base)} ({job.model.facts.num_parameters / 1e6:,.0f} M parameters)",
        "method": name_of(job.method, Method),
        "winner": _values(won.trial.values),
        "best at": f"step {won.best.step}, {won.ended.split(':')[0]}",
        "trained": f"{many(len(trials), 'trial')}, {many(steps, 'step')} in all",
        "devices": ", ".join(devices),
        "seed": str(card.seed),
        "code": card.code_version,
        "from": card.parent or "",
        **{f"{split} data": f"sha256 {digest[:16]}" for split, digest in card.data.items()},
    }
    return {key: text for key, text in found.items() if text}


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{short_key(key)} {cell(value)}" for key, value in values.items())


def _sentence(verdict: Verdict, split: str) -> Sentence:
    return Sentence(text=f"{verdict.text} ({split} set)", tone=TONES[verdict.outcome])


def _why_not(promotion: Promotion) -> str:
    return "not promoted (promote=never)" if promotion is Promotion.never else "not promoted"


def _amounts(forecast: Mapping[str, Any]) -> list[Amount]:
    """Of the forecast that the card keeps; none of a run that was resumed, or ended before its time."""
    if not forecast:
        return []
    predicted, actual = forecast["predicted"], forecast["actual"]
    return [
        Amount(name=name, unit=unit, predicted=finite(predicted[key]), actual=finite(actual[key]))
        for key, (name, unit) in PREDICTED.items()
        if actual.get(key)
    ]


def _commands(job: TrainJob | EvaluateJob, following: Iterable[CommandLine], version: Version) -> list[CommandLine]:
    """The job's own command first, where it is known."""
    own = command_line()
    again = [] if own is None else [CommandLine(meaning="this run, again", text=own)]
    resumed = command_line(run=job.run)
    if resumed is not None and isinstance(job, TrainJob):
        again.append(CommandLine(meaning="resume this run, or see its version where it has ended", text=resumed))
    return [*again, *following, *next_commands(job, version)]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
