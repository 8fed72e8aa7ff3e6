"""The end of a job on the terminal: its results, where they are, and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raytune_llm.data.findings import many
from raytune_llm.evaluation import report
from raytune_llm.evaluation.terms import DRIFT, LOSS, Better
from raytune_llm.jobs.comparison import Promotion
from raytune_llm.jobs.help import called
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.sweep.leaderboard import lowest_loss
from raytune_llm.sweep.tables import cell, short_key
from raytune_llm.training.config import Outcome
from raytune_llm.training.objective import ANSWER_SECONDS, DRIFT_SECONDS

if TYPE_CHECKING:
    from raytune_llm.evaluation.answering import Answering
    from raytune_llm.jobs.drift import Guard
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.jobs.setup import Started
    from raytune_llm.serving.catalog import Endpoint
    from raytune_llm.stores.card import Version


SERVE = ("serve", "adapter={version}", "an OpenAI-compatible endpoint")
NEXT = {
    "adapter": SERVE,
    "model": SERVE,
    "reward": (
        "train",
        "method=rlhf method.rewards.model.adapter={version}",
        "tunes a policy by its scores",
    ),
}
"""The next command, its overrides and what it does, by the kind of the published version."""


def of_training(
    started: Started[Any],
    outcome: Outcome,
    published: PublishResult,
    predicted: Sequence[tuple[str, str]] = (),
    page: str | None = None,
) -> str:
    """The end of a single run, with what it answered, the versions of its earlier stages, what was `predicted`, and
    where its report is."""
    answers = _answers([outcome], started.prepared.answering)
    drift = _drift([outcome], outcome, started.prepared.guard)
    lines = [*_stages(started.earlier), ("trained", _ending(outcome)), *answers, *drift, ("time", started.clock.text())]
    lines += predicted
    return _text(started.job, published, lines, page) + _following(started.job, published)


def of_stage(job: TrainJob, outcome: Outcome, published: PublishResult) -> str:
    """The end of a stage before others."""
    return _text(job, published, [("trained", _ending(outcome))])


def of_sweep(
    started: Started[Any],
    outcomes: Sequence[Outcome],
    won: Outcome,
    published: PublishResult,
    predicted: Sequence[tuple[str, str]] = (),
    page: str | None = None,
) -> str:
    """The end of a sweep, with what its trials answered, the versions of its earlier stages, what was `predicted`, and
    where its report is."""
    assert won.best is not None
    job = started.job
    trained = sum(outcome.reports[-1].step for outcome in outcomes if outcome.reports)
    lines = [
        *_stages(started.earlier),
        ("winner", f"{_values(won)}, best at step {won.best.step} (trial {won.trial.id})"),
        *_another_winner(outcomes, won, published.result.comparison.directions, job.method.metric),
        ("trained", f"{many(len(outcomes), 'trial')}, {many(trained, 'step')} in all"),
        *_answers(outcomes, started.prepared.answering),
        *_drift(outcomes, won, started.prepared.guard),
        ("time", started.clock.text()),
        *predicted,
        ("leaderboard", f"{job.run_dir}/leaderboard.csv"),
    ]
    return _text(job, published, lines, page) + _following(job, published)


def of_endpoint(endpoint: Endpoint) -> str:
    """An endpoint's address and models, with a first request."""
    served = next(entry.names[0] for entry in reversed(endpoint.catalog.entries))
    key = "" if endpoint.api_key is None else ' -H "Authorization: Bearer $YOUR_KEY"'
    body = f'{{"model": "{served}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"serving {', '.join(endpoint.models)} at {endpoint.url}\n" + next_step(
        f"curl {endpoint.url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'", ""
    )


def of_answers(prompt: str, reference: str, answers: Mapping[str, str]) -> str:
    """One prompt with the answer of each served model."""
    width = max(map(len, ["expected", *answers]))
    lines = [f"  {name.ljust(width)}  {answer!r}" for name, answer in [*answers.items(), ("expected", reference)]]
    return "\n".join([f"\n{prompt}", *lines])


def next_step(command: str, meaning: str) -> str:
    return f"\nnext  {command}" + (f"   # {meaning}" if meaning else "")


def _ending(outcome: Outcome) -> str:
    assert outcome.best is not None
    best, last = outcome.best.step, outcome.reports[-1].step
    return f"best at step {best} of {last} ({outcome.ended}), {outcome.seconds:.0f} s of training"


def _values(outcome: Outcome) -> str:
    """What makes a trial of a sweep."""
    return ", ".join(f"{short_key(key)} {cell(value)}" for key, value in outcome.trial.values.items())


def _another_winner(
    outcomes: Sequence[Outcome], won: Outcome, directions: Mapping[str, Better], metric: str
) -> list[tuple[str, str]]:
    """A line where another trial than that of a metric that isn't itself a loss would have won by the loss; none where
    trials' losses can't be compared, because their methods differ."""
    found = lowest_loss(outcomes)
    methods_differ = any(key.startswith("method.") for key in won.trial.values)
    if directions[metric] is not Better.higher or methods_differ or found is None or found[0] is won:
        return []
    outcome, report = found
    own = min(report.metrics[LOSS] for report in won.reports)
    line = (
        f"{metric} and {LOSS} disagree: by {LOSS} {_values(outcome)} (trial {outcome.trial.id}) would have won, "
        f"{report.metrics[LOSS]:.4f} at step {report.step} against {own:.4f}"
    )
    return [("", line)]


def _answers(outcomes: Sequence[Outcome], answering: Answering | None) -> list[tuple[str, str]]:
    """A line with the cost of choosing trials by their answers."""
    if answering is None:
        return []
    records = many(len(answering.prompts), "record")
    return [("answers", f"{records} at each evaluation, {_share_of_time(outcomes, ANSWER_SECONDS)}")]


def _drift(outcomes: Sequence[Outcome], won: Outcome, guard: Guard | None) -> list[tuple[str, str]]:
    """A line with how far the published model is from its base, and the cost of measuring it."""
    assert won.best is not None
    if guard is None or DRIFT not in won.best.metrics:
        return []
    return [("drift", f"{guard.described(won.best.metrics[DRIFT])}, {_share_of_time(outcomes, DRIFT_SECONDS)}")]


def _share_of_time(outcomes: Sequence[Outcome], part: str) -> str:
    """What a part of all trials' seconds took, in words."""
    last = [outcome.reports[-1].metrics for outcome in outcomes if outcome.reports]
    share = sum(found.get(part, 0.0) for found in last) / sum(found["time/seconds"] for found in last)
    whose = "the training's" if len(outcomes) == 1 else "the trials'"
    return f"{100 * share:.0f} % of {whose} time"


def _stages(earlier: Sequence[Version]) -> list[tuple[str, str]]:
    """A line for each version of an earlier stage, with the metric that it was selected by."""
    lines = []
    for place, version in enumerate(earlier, start=1):
        metric = version.card.config["method"]["metric"]
        value = version.card.metrics[metric]
        low, high = version.card.intervals[metric]
        line = f"{version.reference} ({version.card.method}), {metric} {value:.3f} [{low:.3f}, {high:.3f}]"
        lines.append((f"stage {place}", line))
    return lines


def _text(job: TrainJob, published: PublishResult, lines: list[tuple[str, str]], page: str | None = None) -> str:
    version = published.version
    others = " and ".join(published.result.comparison.systems[:-1])
    state = "champion" if published.promoted else f"not promoted: not significantly better than {others}"
    if not published.promoted and published.drift_bound is not None:
        state = f"not promoted: {published.drift_bound}"
    if not published.promoted and job.promote.when is Promotion.never:
        state = "not promoted: promote=never"
    lines = [
        *lines,
        *[
            ("comparison" if i == 0 else "", verdict.text + " (eval set)")
            for i, verdict in enumerate(published.verdicts)
        ],
        *([] if published.contradiction is None else [("", published.contradiction + " (eval set)")]),
        ("registered", f"{version.reference} ({state})"),
        ("report", page or f"{job.run_dir}/evaluation-{published.split}.md"),
    ]
    width = max(len(key) for key, _ in lines)
    table = report.table(published.result.comparison)
    body = "\n".join(f"{key.ljust(width)}  {value}" for key, value in lines)
    return f"\nOn the {published.split} set:\n{table}\n\n{body}"


def _following(job: TrainJob, published: PublishResult) -> str:
    command, overrides, meaning = NEXT[published.version.card.kind]
    overrides = overrides.format(version=published.version.reference)
    return "\n" + next_step(f"{called(command)} {overrides} home={job.home}", meaning)
