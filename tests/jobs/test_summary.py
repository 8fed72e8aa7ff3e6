"""What the end of a job says about answers."""

import pytest

from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs import summary
from raytune_llm.jobs.drift import Guard
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.objective import Objective, Report

ACCURACY = Objective("eval/accuracy", lower_is_better=False)
DIRECTIONS = {"eval/accuracy": Better.higher, "eval/loss": Better.lower}
ANSWERING = Answering(
    prompts=([1], [2]), references=("a", "b"), labels=None, max_new_tokens=4, stop_ids=(0,), answer_after=None
)


def outcome(id, accuracy, loss, answer_seconds=1.0, **values):
    reports = tuple(
        Report(
            step=10 * place,
            metrics={
                "eval/accuracy": accuracy,
                "eval/loss": loss + 1 / place,
                "time/seconds": 10.0 * place,
                "time/answer_seconds": answer_seconds * place,
            },
        )
        for place in (1, 2)
    )
    rest = {"checkpoint": None, "seconds": 20.0, "ended": "complete"}
    return Outcome(trial=Trial(id=id, values=values), reports=reports, best=ACCURACY.best(reports), **rest)


def test_the_share_of_the_time_is_that_of_all_trials():
    outcomes = [outcome("a", 0.5, 2, answer_seconds=1), outcome("b", 0.6, 1, answer_seconds=4)]
    assert summary._answers(outcomes, ANSWERING) == [
        ("answers", "2 records at each evaluation, 25 % of the trials' time")
    ]
    assert summary._answers(outcomes[:1], ANSWERING)[0][1].endswith("10 % of the training's time")
    assert summary._answers(outcomes, None) == []


def test_drift_is_that_of_the_winner_with_its_share_of_all_trials_time():
    guard = Guard(prompts=([1], [2]), stop_ids=(0,), max_new_tokens=4, is_own=False)
    outcomes = [outcome("a", 0.5, 2), outcome("b", 0.6, 1)]
    assert summary._drift(outcomes, outcomes[1], guard) == [], "a run that began before drift was measured"
    for one, value in zip(outcomes, (0.25, 0.03125), strict=True):
        for report in one.reports:
            report.metrics.update({"eval/drift": value, "time/drift_seconds": value * report.metrics["time/seconds"]})
    text = "eval/drift 0.0312 nats a token on 2 general prompts (base's own answers), 14 % of the trials' time"
    assert summary._drift(outcomes, outcomes[1], guard) == [("drift", text)]
    assert summary._drift(outcomes, outcomes[1], None) == []


def test_a_trial_that_would_have_won_by_its_loss_is_named():
    first, second = outcome("a", 0.5, 1, size=4), outcome("b", 0.9, 2, size=8)
    ((_, line),) = summary._another_winner([first, second], second, DIRECTIONS, "eval/accuracy")
    assert line == (
        "eval/accuracy and eval/loss disagree: by eval/loss size 4 (trial a) would have won, "
        "1.5000 at step 20 against 2.5000"
    )


@pytest.mark.parametrize(
    ("key", "metric", "winner"),
    [("size", "eval/accuracy", 0), ("size", "eval/loss", 1), ("method.alpha", "eval/accuracy", 1)],
)
def test_no_other_winner_is_named_where_it_is_the_same_or_losses_mean_different_things(key, metric, winner):
    outcomes = [outcome("a", 0.5, 1, **{key: 4}), outcome("b", 0.9, 2, **{key: 8})]
    assert summary._another_winner(outcomes, outcomes[winner], DIRECTIONS, metric) == []
