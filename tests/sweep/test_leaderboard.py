import csv
import io
import math

import pytest

from raytune_llm.errors import InputError
from raytune_llm.sweep.leaderboard import leaderboard, lowest_loss, winner
from raytune_llm.sweep.plan import Axis, Plan
from raytune_llm.sweep.tables import leaderboard_csv, leaderboard_table
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.history import History
from raytune_llm.training.objective import Objective, Report

LOSS = Objective("eval/loss", lower_is_better=True)
ACCURACY = Objective("eval/accuracy", lower_is_better=False)
FREE = Plan({"tuning.adapter_size": Axis(choices=(1, 4))}, (20, 40))


def outcome(id, losses, ended="complete", every=10, **values):
    history = History(LOSS)
    for i, loss in enumerate(losses, 1):
        history.add(every * i, {"eval/loss": loss, "train/loss": loss})
    best = history.best if losses else None
    return Outcome(
        trial=Trial(id=id, values=values),
        reports=tuple(history.reports),
        best=best,
        checkpoint=None,
        seconds=1.0,
        ended=ended,
    )


def test_the_winner_has_the_best_finite_value():
    a, b, c = outcome("a", [2, 1]), outcome("b", [3, 0.5]), outcome("c", [math.nan])
    assert winner([a, b, c], LOSS) is b
    assert winner([a, b], Objective("eval/loss", lower_is_better=False)) is a


def answered(id, accuracies, losses, **values):
    history = History(ACCURACY)
    for step, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1):
        history.add(10 * step, {"eval/accuracy": accuracy, "eval/loss": loss, "train/loss": loss})
    trial, reports = Trial(id=id, values=values), tuple(history.reports)
    rest = {"checkpoint": None, "seconds": 1.0, "ended": "complete"}
    return Outcome(trial=trial, reports=reports, best=history.best, **rest)


def test_of_equal_answers_the_lower_loss_wins_among_trials_and_among_steps():
    a, b = answered("a", [0.5, 0.9, 0.9], [3, 2, 2.5]), answered("b", [0.9, 0.2, 0.9], [2, 1, 1.5])
    assert (a.best.step, b.best.step) == (20, 30)
    assert winner([a, b], ACCURACY) is b
    rows = leaderboard([a, b], Plan({"tuning.adapter_size": Axis(choices=(1, 4))}, (30,)), ACCURACY)
    assert [row.trial for row in rows] == ["b", "a"]


def test_the_lowest_loss_is_looked_for_in_all_reports():
    a, b = answered("a", [0.5, 0.9], [3, 2]), answered("b", [0.9, 0.2], [2, 1])
    found, report = lowest_loss([a, b])
    assert (found, report.step) == (b, 20)
    assert lowest_loss([answered("c", [0.1], [math.nan])]) is None


def test_the_table_of_a_sweep_by_answers_has_the_losses_too():
    rows = leaderboard([answered("a", [0.5], [3], size=4)], Plan({}, (10,)), ACCURACY)
    header, _, line = leaderboard_table(rows, "eval/accuracy", shown=10).split("\n")
    assert header.split()[:6] == ["size", "eval/accuracy", "at", "step", "eval/loss", "train/loss"]
    assert line.split()[:6] == ["1", "4", "0.5000", "10", "3.0000", "3.0000"]
    by_loss = leaderboard_table(leaderboard([outcome("a", [1])], Plan({}, (10,)), LOSS), "eval/loss", shown=10)
    assert by_loss.split("\n")[0].split().count("eval/loss") == 1


def test_no_winner_says_how_each_trial_ended():
    with pytest.raises(RuntimeError, match=r"a diverged.*b failed: out of memory"):
        winner([outcome("a", [math.nan], "diverged"), outcome("b", [], "failed: out of memory")], LOSS)
    with pytest.raises(InputError, match=r"a diverged; try smaller values of tuning\.learning_rate_multiplier"):
        winner([outcome("a", [math.nan], "diverged")], LOSS)


def test_free_steps_are_unfolded_and_each_shows_what_it_would_have_kept():
    rows = leaderboard([outcome("a", [4, 3, 2, 1])], FREE, LOSS)
    assert [(row.values["tuning.steps"], row.best.step) for row in rows] == [(40, 40), (20, 20)]


def test_equal_results_put_the_shorter_trial_first():
    rows = leaderboard([outcome("a", [4, 1, 2, 3])], FREE, LOSS)
    assert [(row.values["tuning.steps"], row.best.step) for row in rows] == [(20, 20), (40, 20)]


def test_a_trial_that_the_scheduler_stopped_has_no_longer_points():
    rows = leaderboard([outcome("a", [4, 3], ended="scheduler")], FREE, LOSS)
    assert [row.values["tuning.steps"] for row in rows] == [20]


def test_a_trial_that_stopped_by_patience_has_all_points():
    rows = leaderboard([outcome("a", [1, 3], ended="early stopping")], FREE, LOSS)
    assert [row.values["tuning.steps"] for row in rows] == [20, 40]


def test_leaderboard_as_text_and_csv():
    outcomes = [
        outcome("a", [4, 3, 2, 1], **{"tuning.adapter_size": 4}),
        outcome("b", [4, 3, 2, 1.5], **{"tuning.adapter_size": 1}),
    ]
    rows = leaderboard(outcomes, FREE, LOSS)
    text = leaderboard_table(rows, "eval/loss", shown=3).splitlines()
    assert text[0].split() == ["adapter_size", "steps", "eval/loss", "at", "step", "train/loss", "trial", "ended"]
    assert text[2].split() == ["1", "4", "40", "1.0000", "40", "1.0000", "a", "complete"]
    assert text[-1] == "… and 1 more in leaderboard.csv"
    read = list(csv.DictReader(io.StringIO(leaderboard_csv(rows))))
    assert [row["trial"] for row in read] == ["a", "b", "a", "b"]
    assert float(read[1]["eval/loss"]) == 1.5 and read[1]["tuning.adapter_size"] == "1"


def test_a_trial_cut_short_has_a_row_for_what_it_reached():
    early = outcome("a", [3, 0.5], ended="budget", every=5, adapter_size=4)
    late = outcome("b", [3, 2, 1], ended="scheduler", adapter_size=1)
    rows = leaderboard([early, late], FREE, LOSS)
    found = [(row.trial, row.values["tuning.steps"], row.best.metrics["eval/loss"]) for row in rows]
    assert found == [("a", 10, 0.5), ("b", 30, 1), ("b", 20, 2)]
    assert winner([early, late], LOSS).trial.id == rows[0].trial


def drifted(id, loss, drift, **values):
    metrics = {"eval/loss": loss, "train/loss": loss} | ({} if drift is None else {"eval/drift": drift})
    report = Report(step=10, metrics=metrics)
    rest = {"checkpoint": None, "seconds": 1.0, "ended": "complete"}
    return Outcome(trial=Trial(id=id, values=values), reports=(report,), best=report, **rest)


def test_the_front_of_metric_and_drift_is_marked():
    given = {"a": (1.0, 0.4), "b": (2.0, 0.1), "c": (3.0, 0.2), "d": (1.0, 0.4), "e": (4.0, math.nan), "f": (5.0, None)}
    rows = leaderboard([drifted(id, *found) for id, found in given.items()], Plan({}, (10,)), LOSS)
    assert {row.trial for row in rows if row.pareto} == {"a", "b", "d"}
    text = leaderboard_table(rows, "eval/loss", shown=10).splitlines()
    assert text[0].split() == ["eval/loss", "at", "step", "train/loss", "eval/drift", "pareto", "trial", "ended"]
    assert text[2].split() == ["1", "1.0000", "10", "1.0000", "0.4000", "●", "a", "complete"]
    assert text[5].split() == ["4", "3.0000", "10", "3.0000", "0.2000", "c", "complete"]
    read = list(csv.DictReader(io.StringIO(leaderboard_csv(rows))))
    assert [row["pareto"] for row in read] == ["●", "●", "●", "", "", ""]


def test_bases_have_fronts_of_their_own():
    outcomes = [drifted("a", 1.0, 0.1, model="x"), drifted("b", 2.0, 0.2, model="y"), drifted("c", 3.0, 0.3, model="y")]
    rows = leaderboard(outcomes, Plan({}, (10,)), LOSS)
    assert [row.pareto for row in rows] == [True, True, False]


def test_without_drift_nothing_is_marked():
    rows = leaderboard([outcome("a", [2, 1])], Plan({}, (20,)), LOSS)
    assert "pareto" not in leaderboard_table(rows, "eval/loss", shown=10) + leaderboard_csv(rows)
