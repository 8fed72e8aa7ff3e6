"""Is the winner luck? A sweep's first configurations, each trained again with other seeds, are compared on records that
stopped no trial; the cheapest of those that may be equally good wins (sweep/confirm.py, evaluation/first_place.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from raytune_llm import cluster
from raytune_llm.data.encoding.encode import EncodedSplit
from raytune_llm.data.findings import many
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.evaluation.compare import VerdictKind, better, compare, number
from raytune_llm.evaluation.first_place import Ranking, rank, sign_of
from raytune_llm.evaluation.metrics import Metric
from raytune_llm.evaluation.systems import Systems
from raytune_llm.jobs.compare import compare_losses, compare_systems
from raytune_llm.jobs.comparison import Evaluation
from raytune_llm.jobs.held_out import held_out
from raytune_llm.jobs.precompute import FrozenModels
from raytune_llm.jobs.schema import SweepJob
from raytune_llm.sweep import leaderboard
from raytune_llm.sweep.confirm import SEED, Contender, contenders, steps_of
from raytune_llm.sweep.plan import BASE, BATCH_SIZE, SIZE, Plan
from raytune_llm.sweep.tables import cell, short_key, text_table
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.prepare import Prepared
    from raytune_llm.jobs.setup import Started
    from raytune_llm.sweep.phases import Phase

Bases = Mapping[str | None, "Started[SweepJob]"]


@dataclass(frozen=True)
class Confirmation:
    """What the first configurations came to."""

    metric: str
    split: str
    """Which records they were compared on."""
    contenders: tuple[Contender, ...]
    """In the order of the leaderboard."""
    ranking: Ranking
    configuration: str
    """The one that wins, by the trial that it was first trained in."""
    winner: Outcome
    """Its best run: the first one, or one with a fresh seed."""

    @property
    def verdict(self) -> str:
        """In a sentence."""
        first = self.ranking.standings[0]
        records = f"{len(first.runs)} fresh seeds each, {self.ranking.num_records} {self.split} records"
        sure = f"{first.name} is first with probability {first.first:.2f}"
        if self.ranking.is_clear:
            return f"not luck: {sure} ({records})"
        equal = [name for name in self.ranking.equals if name != first.name]
        if not equal:
            return f"luck isn't excluded: {sure} ({records})"
        chosen = f"{self.configuration} is the cheapest of those whose best run is no worse"
        return f"no significant difference between {first.name} and {' and '.join(equal)}: {sure} ({records}); {chosen}"

    def columns(self) -> list[str]:
        keys = list(dict.fromkeys(key for one in self.contenders for key in one.row.values))
        return ["trial", *map(short_key, keys), f"{self.metric}, fresh seeds", "each seed", "first", ""]

    def rows(self) -> list[list[str]]:
        """One a configuration, the best first."""
        by_trial = {one.trial: one.row.values for one in self.contenders}
        keys = list(dict.fromkeys(key for values in by_trial.values() for key in values))
        return [
            [
                one.name,
                *(cell(by_trial[one.name].get(key, "")) for key in keys),
                number(one.mean),
                ", ".join(map(number, one.runs)),
                f"{one.first:.2f}",
                "wins" if one.name == self.configuration else "",
            ]
            for one in self.ranking.standings
        ]

    def text(self) -> str:
        """For the terminal."""
        return f"is the winner luck?\n{text_table(self.columns(), self.rows())}\n{self.verdict}"

    def described(self) -> dict[str, Any]:
        """As plain values."""
        values = {one.trial: one.row.values for one in self.contenders}
        return {
            "metric": self.metric,
            "split": self.split,
            "num_records": self.ranking.num_records,
            "configurations": [{**asdict(one), "values": values[one.name]} for one in self.ranking.standings],
            "is_clear": self.ranking.is_clear,
            "winner": self.configuration,
            "run": self.winner.trial.id,
            "verdict": self.verdict,
        }


def announced(job: SweepJob, prepared: Prepared, plan: Plan) -> str | None:
    """What confirming will cost, or why nothing is confirmed; None where that was not asked for."""
    confirm = job.sweep.confirm
    top = min(confirm.top, len(plan.first) + job.sweep.search.num_trials(plan))
    if not confirm.is_on or top < 2:
        return None
    if (records := held_out(job, prepared.encoded)) is None:
        count = many(len(prepared.encoded.eval.records), "eval record")
        return f"the winner will not be confirmed: {count} are too few to hold half of them out; data.test names others"
    steps = plan.most_steps()
    return (
        f"at the end the first {top} are trained again with {confirm.seeds} other seeds each, at most "
        f"{top * confirm.seeds} × {steps} steps, and compared on {many(len(records[1].records), 'record')} of "
        f"{records[0]} (sweep.confirm.top=0: not)"
    )


def contenders_of(bases: Bases, outcomes: Sequence[Outcome], plan: Plan) -> list[Contender]:
    """The configurations that are to be confirmed."""
    started = next(iter(bases.values()))
    job, prepared = started.job, started.prepared
    if held_out(job, prepared.encoded) is None:
        return []
    objective = job.trial_config(prepared.better, prepared.answering).objective
    return contenders(outcomes, plan, objective, job.sweep.confirm, job.seed)


def confirming_phases(phases: Sequence[Phase], found: Sequence[Contender]) -> list[Phase]:
    """Their trials, base by base."""
    from raytune_llm.sweep.trial_store import Origin

    if found:
        print(f"\nis the winner luck? Training {' and '.join(one.trial for one in found)} with other seeds", flush=True)
    following = []
    for phase in phases:
        points = [point for one in found if one.base == phase.base for point in one.points]
        if points:
            following.append(replace(phase, points=points, warm=(), origin=Origin.confirm))
    return following


def confirm(
    bases: Bases, found: Sequence[Contender], outcomes: Sequence[Outcome], followed: Sequence[Outcome], plan: Plan
) -> Confirmation | None:
    """Compare the configurations by their fresh runs, and their best runs with each other; None where not all of these
    came to a result, as when a budget is used up."""
    first = next(iter(bases.values()))
    job, records = first.job, held_out(first.job, first.prepared.encoded)
    fresh = {one.trial: fresh_runs(one, followed) for one in found}
    if records is None or not found or any(len(fresh[one.trial]) < len(one.points) for one in found):
        return None
    objective = job.trial_config(first.prepared.better, first.prepared.answering).objective
    own = {outcome.trial.id: outcome for outcome in outcomes}
    best = {trial: leaderboard.winner([own[trial], *runs], objective) for trial, runs in fresh.items()}
    runs = {run.trial.id: run for one in found for run in (*fresh[one.trial], best[one.trial])}
    metrics = measured_on_bases(bases, list(runs.values()))
    draws, seed = job.evaluation.bootstrap_draws, job.seed
    of_fresh = {trial: [metrics[run.trial.id] for run in own] for trial, own in fresh.items()}
    ranking = rank(of_fresh, num_draws=draws, seed=seed)
    good = as_good({trial: metrics[best[trial].trial.id] for trial in ranking.equals}, num_draws=draws, seed=seed)
    equal = [one for one in found if one.trial in good]
    chosen = min(equal, key=lambda one: cost_of(bases[one.base].job, one, plan)).trial
    return Confirmation(job.method.metric, records[0], tuple(found), ranking, chosen, best[chosen])


def as_good(runs: Mapping[str, Metric], *, num_draws: int, seed: int) -> list[str]:
    """Those that aren't worse than the best of them by more than chance, on the same records."""
    sign = sign_of({name: [metric] for name, metric in runs.items()})
    best = min(runs, key=lambda name: sign * runs[name].whole())
    ordered = {name: {"": runs[name]} for name in (*(name for name in runs if name != best), best)}
    comparison = compare(ordered, num_draws=num_draws, seed=seed)
    others = [name for name in runs if name != best]
    return [best, *(name for name in others if better(comparison, "", best, name).outcome is VerdictKind.alike)]


def fresh_runs(contender: Contender, followed: Sequence[Outcome]) -> list[Outcome]:
    """A configuration's runs with fresh seeds that came to a result."""
    seeds = [point[SEED] for point in contender.points]
    values = {key: value for key, value in contender.row.values.items() if key != SEED}
    return [
        outcome
        for outcome in followed
        if outcome.best is not None
        and outcome.trial.values.get(SEED) in seeds
        and {key: value for key, value in outcome.trial.values.items() if key != SEED} == values
    ]


def measured_on_bases(bases: Bases, runs: Sequence[Outcome]) -> dict[str, Metric]:
    """method.metric of the runs on the records held out, by their trials."""
    found: dict[str, Metric] = {}
    for base, started in bases.items():
        systems = {run.trial.id: f"{run.checkpoint}/best" for run in runs if run.trial.values.get(BASE) == base}
        found |= measure(started, systems) if systems else {}
    return found


def cost_of(job: SweepJob, contender: Contender, plan: Plan) -> tuple[int, int, int]:
    """By which equal configurations are chosen: parameters of the base, of the adapter, examples trained on."""
    row = contender.row
    size = row.values.get(SIZE, job.tuning.adapter_size)
    batch_size = row.values.get(BATCH_SIZE, job.tuning.batch_size)
    return job.model.facts.num_parameters, size, steps_of(row, plan, job.tuning.steps) * batch_size


def measure(started: Started[SweepJob], systems: Systems) -> dict[str, Metric]:
    """method.metric of each system on the records held out; in a Ray task, where the accelerators are."""
    job, prepared = started.job, started.prepared
    records = held_out(job, prepared.encoded)
    assert records is not None
    print(f"comparing {many(len(systems), 'run')} on {records[0]} records …", end="", flush=True)
    begun = time.monotonic()
    try:
        measured: dict[str, Metric] = cluster.as_task(metric_of_each, use_gpu=started.use_gpu)(
            FrozenModels.of(job, use_gpu=started.use_gpu),
            dict(systems),
            records[1],
            job.evaluation,
            is_answered=prepared.answering is not None,
            tokens=prepared.tokens,
            seed=job.seed,
            allow_modules=list(job.allow_modules),
        )
    finally:
        print(f" {time.monotonic() - begun:.0f} s", flush=True)
    return measured


def metric_of_each(
    models: FrozenModels,
    systems: Systems,
    split: EncodedSplit,
    evaluation: Evaluation,
    *,
    is_answered: bool,
    tokens: Tokens,
    seed: int,
    allow_modules: Sequence[str],
) -> dict[str, Metric]:
    """method.metric of each system; nothing is generated where it isn't one of answers or samples."""
    needs = models.method.needs
    if is_answered or needs.score or needs.sampling:
        found = compare_systems(
            models, systems, split, evaluation, tokens=tokens, seed=seed, allow_modules=allow_modules
        )
    else:
        found = compare_losses(models, systems, split, evaluation, tokens=tokens, seed=seed)
    return {name: metrics[models.method.metric] for name, metrics in found.measured.items()}
