"""What a running sweep shows: its numbers, and when they are printed."""

import math
from types import SimpleNamespace

import pytest

from raytune_llm.sweep.camera import MOST_POINTS, Camera
from raytune_llm.sweep.progress import LOG_SECONDS, MOST_LOG_SECONDS, LiveView, LogLines
from raytune_llm.sweep.snapshot import Load, TrialState
from raytune_llm.sweep.trial_store import Ending, Origin, TrialRecord
from raytune_llm.training.objective import Objective
from raytune_llm.training.screen import plain

LOSS = Objective("eval/x", lower_is_better=True)


def camera_of(objective, records, endings, steps, num_left=0):
    """Of as much of a steered sweep as it looks at."""
    proposals = SimpleNamespace(
        objective=objective,
        store=SimpleNamespace(
            records={id: TrialRecord(id=id, values={"tuning.adapter_size": 4}, origin=Origin.search) for id in records},
            endings=endings,
        ),
        plan=SimpleNamespace(most_steps=lambda: 20, keys=["tuning.adapter_size"]),
        num_left=lambda: num_left,
        reports={},
        costs={},
        points=(),
    )
    proposals.of_base = lambda: list(proposals.store.records.values())
    live = {id: SimpleNamespace(status="RUNNING") for id in records if id not in endings}
    spending = SimpleNamespace(
        steps=steps,
        tokens=0.0,
        amounts=lambda: {"hours": 0.5, "gpu_hours": 1.0, "usd": 2.0, "tokens": 7.0},
        prices=SimpleNamespace(usd_per_hour=4.0),
        budget=SimpleNamespace(hours=None, gpu_hours=None, usd=8.0, tokens=None, trials=3),
    )
    runner = SimpleNamespace(where="a pack", loads=lambda: [Load(2, 3)], max_concurrent=3)
    queue = SimpleNamespace(proposals=proposals, live=live)
    return Camera(SimpleNamespace(queue=queue, spending=spending, runner=runner, drain=None, why=""), "n/r", "control")


def report(camera, id, step, value):
    """As steering and Ray Tune's callback do."""
    proposals = camera.steering.queue.proposals
    cost = proposals.objective.cost(value)
    proposals.reports.setdefault(id, []).append((step, cost))
    proposals.costs[id] = min(cost, proposals.costs.get(id, cost))
    camera.steering.spending.steps[id] = step
    return {"step": step, "eval/x": value, "train/loss": 1.0}


@pytest.mark.parametrize(("lower", "first", "best"), [(True, "a", 0.5), (False, "b", 2.0)])
def test_trials_are_listed_best_first_by_the_objective(lower, first, best, capsys):
    endings = {}
    camera = camera_of(Objective("eval/x", lower_is_better=lower), "ab", endings, {}, 1)
    lines = LogLines(camera)
    lines.setup()
    for id, values in {"a": (0.5, 1.0), "b": (1.5, 2.0)}.items():
        for place, value in enumerate(values, 1):
            found = report(camera, id, 10 * place, value)
            lines.on_trial_result(1, [], SimpleNamespace(trial_id=id), found)
    endings["b"] = Ending(why="complete", checkpoint=None)
    del camera.steering.queue.live["b"]
    taken = camera.take()
    assert taken.rows[0].id == taken.best.trial == first and taken.best.value == best
    assert (taken.num_ended, taken.num_running, taken.num_trials, taken.steps_done) == (1, 1, 3, 40)
    assert taken.budget == (("usd", 2.0, 8.0), ("trials", 2.0, 3.0)) and taken.usd == 2.0
    lines.show()
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("1 of 3 trials ended, 1 running, 1 to come")
    assert printed[4].split()[0] == first and "\x1b" not in "".join(printed)
    lines.show()
    assert not capsys.readouterr().out, "nothing is new"


def test_what_an_earlier_start_has_done_counts():
    camera = camera_of(LOSS, "ab", {"a": Ending(why="scheduler", checkpoint=None)}, {"a": 5, "b": 10})
    camera.begin()
    assert camera.done_before == camera.done() == 30 and camera.seconds_left() is None


def test_states():
    endings = {"a": Ending(why="diverged: loss", checkpoint=None), "b": Ending(why="budget", checkpoint=None)}
    camera = camera_of(LOSS, "abcdef", endings, {})
    camera.begin()
    camera.failed.add("c")
    camera.steering.queue.live["d"].status = "PENDING"
    report(camera, "e", 10, 1.0)
    states = {row.id: row.state for row in camera.take().rows}
    assert [states[id].value for id in "abcdef"] == ["diverged", "over", "failed", "queued", "running", "starting"]
    assert camera.state_of("e", is_over=True) is TrialState.unfinished


def test_curves_are_bounded_and_what_is_not_finite_is_nan():
    camera = camera_of(LOSS, "ab", {}, {})
    camera.begin()
    for step in range(1000):
        report(camera, "a", step, 1000.0 - step)
    report(camera, "b", 10, math.nan)
    first, second = camera.take().rows
    assert len(first.curve) == MOST_POINTS and first.curve[-1] == first.last == first.best == 1.0
    assert second.id == "b" and math.isnan(second.last) and math.isnan(second.best)


def test_a_log_is_written_less_often_with_time():
    camera = camera_of(LOSS, "a", {}, {})
    lines = LogLines(camera)
    lines.setup()
    assert lines.period_seconds(camera.started) == LOG_SECONDS
    assert lines.period_seconds(camera.started + 1e6) == MOST_LOG_SECONDS


def test_a_live_view_shows_the_last_snapshot(capsys):
    view = LiveView(camera_of(LOSS, "a", {}, {}))
    view.setup()
    view.on_trial_result(1, [], SimpleNamespace(trial_id="a"), report(view.camera, "a", 10, 0.25))
    view.on_trial_error(1, [], SimpleNamespace(trial_id="a", path="/runs/a"))
    view.end()
    assert "best eval/x 0.25 at step 10: a" in plain(view.draw(80, 24))
    assert capsys.readouterr().out == "trial a failed; see /runs/a/error.txt\n"
