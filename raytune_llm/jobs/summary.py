"""What a job says at its end: what came out, where it stands, what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raytune_llm.evaluation import report
from raytune_llm.jobs.schema import TrainJob
from raytune_llm.training.config import Outcome

if TYPE_CHECKING:
    from raytune_llm.jobs.publish import PublishResult
    from raytune_llm.serving.catalog import Endpoint
    from raytune_llm.stores.card import Version


SERVE = ("python jobs/serve.py adapter={version}", "an OpenAI-compatible endpoint")
NEXT = {
    "adapter": SERVE,
    "model": SERVE,
    "reward": (
        "python jobs/train.py method=rlhf method.rewards.model.adapter={version}",
        "tunes a policy by its scores",
    ),
}
"""What to type next, by the kind of what was made."""


def of_training(job: TrainJob, outcome: Outcome, conclusion: PublishResult, earlier: Sequence[Version] = ()) -> str:
    """The end of a single run, and what its earlier stages made."""
    lines = [*_stages(earlier), ("trained", _ending(outcome))]
    return _text(job, conclusion, lines) + _following(job, conclusion)


def of_stage(job: TrainJob, outcome: Outcome, conclusion: PublishResult) -> str:
    """The end of a stage that others follow."""
    return _text(job, conclusion, [("trained", _ending(outcome))])


def of_sweep(
    job: TrainJob, outcomes: Sequence[Outcome], won: Outcome, conclusion: PublishResult, earlier: Sequence[Version] = ()
) -> str:
    """The end of a sweep, and what its earlier stages made."""
    assert won.best is not None
    trained = sum(outcome.reports[-1].step for outcome in outcomes if outcome.reports)
    values = ", ".join(
        f"{key.rsplit('.', 1)[-1]} {value:g}" if isinstance(value, float) else f"{key.rsplit('.', 1)[-1]} {value}"
        for key, value in won.trial.values.items()
    )
    lines = [
        *_stages(earlier),
        ("winner", f"{values}, best at step {won.best.step} (trial {won.trial.id})"),
        ("trained", f"{len(outcomes)} trials, {trained} steps in all"),
        ("leaderboard", f"{job.run_dir}/leaderboard.csv"),
    ]
    return _text(job, conclusion, lines) + _following(job, conclusion)


def of_endpoint(endpoint: Endpoint) -> str:
    """How to talk to an endpoint."""
    served = next(entry.names[0] for entry in reversed(endpoint.catalogue.entries))
    key = "" if endpoint.api_key is None else ' -H "Authorization: Bearer $YOUR_KEY"'
    body = f'{{"model": "{served}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"serving {', '.join(endpoint.models)} at {endpoint.url}\n" + next_step(
        f"curl {endpoint.url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'", ""
    )


def of_answers(prompt: str, reference: str, answers: Mapping[str, str]) -> str:
    """One prompt and what each served model answers to it."""
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
    """A line for each version that was made first, with the metric that it was chosen by."""
    lines = []
    for place, version in enumerate(earlier, start=1):
        metric = version.card.config["method"]["metric"]
        value = version.card.metrics[metric]
        low, high = version.card.intervals[metric]
        said = f"{version.reference} ({version.card.method}), {metric} {value:.3f} [{low:.3f}, {high:.3f}]"
        lines.append((f"stage {place}", said))
    return lines


def _text(job: TrainJob, conclusion: PublishResult, lines: list[tuple[str, str]]) -> str:
    version = conclusion.version
    others = " and ".join(conclusion.proof.comparison.systems[:-1])
    standing = "champion" if conclusion.promoted else f"not promoted: it has not beaten {others} by more than chance"
    if not conclusion.promoted and job.promote.value == "never":
        standing = "not promoted, as asked"
    lines = [
        *lines,
        *[("proof" if i == 0 else "", verdict.text + " (eval set)") for i, verdict in enumerate(conclusion.verdicts)],
        ("registered", f"{version.reference} ({standing})"),
        ("report", f"{job.run_dir}/evaluation-{conclusion.proven_on}.md"),
    ]
    width = max(len(key) for key, _ in lines)
    table = report.table(conclusion.proof.comparison)
    body = "\n".join(f"{key.ljust(width)}  {value}" for key, value in lines)
    return f"\nOn the {conclusion.proven_on} set:\n{table}\n\n{body}"


def _following(job: TrainJob, conclusion: PublishResult) -> str:
    command, meaning = NEXT[conclusion.version.card.kind]
    command = command.format(version=conclusion.version.reference)
    return "\n" + next_step(command + (f" home={job.home}" if job.home else ""), meaning)
