"""The end of a job on the terminal: its results, where they are, and the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raytune_llm.evaluation import report
from raytune_llm.jobs.help import called
from raytune_llm.jobs.schema import Promotion, TrainJob
from raytune_llm.sweep.tables import cell, short_key
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult
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


def of_training(job: TrainJob, outcome: Outcome, published: PublishResult, earlier: Sequence[Version] = ()) -> str:
    """The end of a single run, with the versions of its earlier stages."""
    lines = [*_stages(earlier), ("trained", _ending(outcome))]
    return _text(job, published, lines) + _following(job, published)


def of_stage(job: TrainJob, outcome: Outcome, published: PublishResult) -> str:
    """The end of a stage before others."""
    return _text(job, published, [("trained", _ending(outcome))])


def of_sweep(
    job: TrainJob, outcomes: Sequence[Outcome], won: Outcome, published: PublishResult, earlier: Sequence[Version] = ()
) -> str:
    """The end of a sweep, with the versions of its earlier stages."""
    assert won.best is not None
    trained = sum(outcome.reports[-1].step for outcome in outcomes if outcome.reports)
    values = ", ".join(f"{short_key(key)} {cell(value)}" for key, value in won.trial.values.items())
    lines = [
        *_stages(earlier),
        ("winner", f"{values}, best at step {won.best.step} (trial {won.trial.id})"),
        ("trained", f"{len(outcomes)} trials, {trained} steps in all"),
        ("leaderboard", f"{job.run_dir}/leaderboard.csv"),
    ]
    return _text(job, published, lines) + _following(job, published)


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


def _text(job: TrainJob, published: PublishResult, lines: list[tuple[str, str]]) -> str:
    version = published.version
    others = " and ".join(published.result.comparison.systems[:-1])
    state = "champion" if published.promoted else f"not promoted: not significantly better than {others}"
    if not published.promoted and job.promote is Promotion.never:
        state = "not promoted: promote=never"
    lines = [
        *lines,
        *[
            ("comparison" if i == 0 else "", verdict.text + " (eval set)")
            for i, verdict in enumerate(published.verdicts)
        ],
        ("registered", f"{version.reference} ({state})"),
        ("report", f"{job.run_dir}/evaluation-{published.split}.md"),
    ]
    width = max(len(key) for key, _ in lines)
    table = report.table(published.result.comparison)
    body = "\n".join(f"{key.ljust(width)}  {value}" for key, value in lines)
    return f"\nOn the {published.split} set:\n{table}\n\n{body}"


def _following(job: TrainJob, published: PublishResult) -> str:
    command, overrides, meaning = NEXT[published.version.card.kind]
    overrides = overrides.format(version=published.version.reference)
    return "\n" + next_step(f"{called(command)} {overrides} home={job.home}", meaning)
