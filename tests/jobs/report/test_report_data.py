"""A report's data: what is collected, worked out and left out."""

import json
import math

import numpy as np
import pytest
from report_world import KNOBS, RATE, SCHEDULE, SIZE, sweep_report, trial

from raytune_llm.jobs.report import importance
from raytune_llm.jobs.report.data import Knob, Point, Span, plain
from raytune_llm.jobs.report.differing import Piece, pieces
from raytune_llm.jobs.report.front import FEWEST, MOST_OF_ALL, pareto, thinned
from raytune_llm.jobs.report.knobs import knobs_of
from raytune_llm.jobs.report.lanes import bars_of
from raytune_llm.jobs.report.spans import report_times, spans_of, trial_run
from raytune_llm.stores.json import to_json
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.plan import Plan
from raytune_llm.training.attempts import Attempt
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.objective import Objective, Report

LOSS = Objective("eval/loss", lower_is_better=True)


def test_numbers_that_are_none_become_null():
    found = plain({"a": math.nan, "b": (1, math.inf, "x"), "c": {"d": -0.5}})
    assert found == {"a": None, "b": [1, None, "x"], "c": {"d": -0.5}}


def test_a_report_is_plain_json_with_its_schema_first():
    content = sweep_report(3).to_dict()
    assert next(iter(content)) == "schema" and content["schema"] == 1
    assert json.loads(to_json(content)) == json.loads(json.dumps(content))
    assert content["trials"][0]["points"][0]["metrics"]["eval/loss"] > 0


def test_a_trial_is_read_with_the_times_of_its_reports(tmp_path):
    folder = tmp_path / "trials/t0001"
    folder.mkdir(parents=True)
    lines = ['{"step":5,"time":10.0,"train/loss":1.0}', '{"step":10,"time":20.5,"eval/loss":"NaN"}', '{"step":20,"ti']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "trial.json").write_text('{"origin": "first"}')
    losses = {10: math.inf, 20: 0.4}
    reports = tuple(
        Report(step=step, metrics={"eval/loss": loss, "cost/gpu_hours": 0.5}) for step, loss in losses.items()
    )
    outcome = Outcome(
        trial=Trial(id="t0001", values={RATE: 3}),
        reports=reports,
        best=LOSS.best(reports),
        checkpoint=None,
        seconds=8.0,
        ended="complete",
    )
    found = trial_run(str(tmp_path), outcome, LOSS)
    assert [(point.step, point.time) for point in found.points] == [(10, 20.5), (20, None)]
    assert found.points[0].metrics["eval/loss"] is None and found.best == 0.4 and found.best_step == 20
    assert found.origin == "first" and found.gpu_hours == 0.5
    [span] = found.spans
    assert (span.start, span.end, span.is_exact) == (12.5, 20.5, False)
    assert report_times(str(folder), "train/loss") == {5: 10.0}


def test_a_trial_that_moved_has_a_span_for_each_process():
    points = [Point(step=step, time=100.0 + step, metrics={}) for step in (1, 2, 30, 40)]
    attempts = [
        Attempt(started=100.0, from_step=0, host="a", process=1, device="CPU"),
        Attempt(started=120.0, from_step=2, host="a", process=2, device="CPU"),
        Attempt(started=150.0, from_step=40, host="b", process=3, device="CPU"),
    ]
    found = spans_of(attempts, points, 5.0)
    assert [(span.start, span.end, span.process) for span in found] == [(100, 102, 1), (120, 140, 2), (150, 150, 3)]
    assert spans_of([], [], 5.0) == []


def spanned(id, *spans):
    made = trial(0)
    spans = [
        Span(start=start, end=end, host=host, device="GPU 0", process=process, is_exact=True)
        for start, end, host, process in spans
    ]
    return type(made)(**{**vars(made), "id": id, "spans": spans})


def test_lanes_are_the_slots_that_were_taken_at_once():
    trials = [
        spanned("a", (0, 10, "x", 1)),
        spanned("b", (1, 4, "x", 1)),
        spanned("c", (5, 9, "x", 1), (10, 12, "x", 2)),
        spanned("d", (0, 3, "x", 2)),
    ]
    lanes = {(bar.trial.id, bar.span.start): bar.lane for bar in bars_of(trials)}
    first, second = "GPU 0 · pack 1 · ", "GPU 0 · pack 2 · "
    assert lanes == {
        ("a", 0): f"{first}1",
        ("b", 1): f"{first}2",
        ("c", 5): f"{first}2",
        ("d", 0): f"{second}1",
        ("c", 10): f"{second}1",
    }


def test_processes_of_a_trial_each_share_the_lanes_of_their_device():
    trials = [spanned("a", (0, 5, "x", 1)), spanned("b", (5, 9, "x", 2)), spanned("c", (2, 9, "y", 3))]
    assert [bar.lane for bar in bars_of(trials)] == ["GPU 0 on x · 1", "GPU 0 on x · 1", "GPU 0 on y · 1"]


def test_knobs_know_their_scale():
    plan = Plan(axes={"method.alpha": Axis(low=0.5, high=1.0, distribution="log_uniform")}, milestones=(10,))
    points = [
        {RATE: 0.3, SIZE: 4, "tuning.x": None, "method.alpha": 0.6, "seed": 1},
        {RATE: 3, SIZE: 8, "tuning.x": 2, "method.alpha": 0.7},
    ]
    found = {knob.label: knob.scale for knob in knobs_of(plan, points)}
    assert found == {
        "learning_rate_multiplier": "log",
        "adapter_size": "linear",
        "x": "categories",
        "alpha": "log",
        "seed": "linear",
    }
    assert not knobs_of(plan, points[:1])


def test_two_knobs_of_one_name_are_shown_by_their_keys():
    found = knobs_of(Plan(axes={}, milestones=(10,)), [{"a.x": 1, "b.x": 1}, {"a.x": 2, "b.x": 3}])
    assert [knob.label for knob in found] == ["a.x", "b.x"]


def test_the_front_is_what_nothing_cheaper_beats():
    assert pareto([1, 2, 3, 3], [5, 6, 4, 3], lower_is_better=True) == [0, 3]
    assert pareto([2, 1], [0.9, 0.8], lower_is_better=False) == [1, 0]


@pytest.mark.parametrize("num_curves", [1, 200, 100_000])
def test_curves_keep_their_ends_and_the_best(num_curves):
    places = thinned(50_000, num_curves, keep=[17])
    assert places[0] == 0 and places[-1] == 49_999 and 17 in places
    assert len(places) <= max(FEWEST, MOST_OF_ALL // num_curves) + 1
    assert thinned(5, num_curves) == [0, 1, 2, 3, 4]


def test_the_knob_that_decides_is_found_and_few_trials_are_unsure():
    trials = [trial(place) for place in range(60)]
    first, *others = importance.importances(trials, KNOBS, lower_is_better=True)
    assert first.knob.key == RATE and first.share > 0.5
    assert math.isclose(first.share + sum(other.share for other in others), 1.0, abs_tol=1e-6)
    few = importance.importances(trials[:9], KNOBS, lower_is_better=True)
    widths = [np.mean([one.high - one.low for one in found]) for found in ([first, *others], few)]
    assert widths[1] > widths[0]


def test_too_few_trials_have_no_importance_but_a_reason():
    trials = [trial(place) for place in range(5)]
    assert importance.importances(trials, KNOBS, lower_is_better=True) == []
    assert "8 trials" in importance.why_not(trials, KNOBS)
    assert "two knobs" in importance.why_not([trial(place) for place in range(20)], KNOBS[:1])
    missing = Knob(key="method.alpha", label="alpha", scale="linear")
    assert "here 0 have" in importance.why_not([trial(place) for place in range(20)], [*KNOBS, missing])
    assert SCHEDULE in {knob.key for knob in KNOBS}


def test_answers_differ_word_by_word():
    assert pieces("It is bad.", "It is very bad") == [
        Piece("same", "It is "),
        Piece("extra", "very "),
        Piece("same", "bad"),
        Piece("missing", "."),
    ]
    assert pieces("yes", "an altogether different text") == [Piece("extra", "an altogether different text")]
    assert pieces("", "free text") == [Piece("same", "free text")] and pieces("yes", "") == []
