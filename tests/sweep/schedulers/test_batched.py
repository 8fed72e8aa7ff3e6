"""Reports that come at about the same time are decided together, in the scheduler's order."""

import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raytune_llm.sweep.schedulers.asha import ASHA
from raytune_llm.sweep.schedulers.batched import MOST_SECONDS, SHARE, BatchedScheduler


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Recording(FIFOScheduler):
    """Stops the trials named in `stops`, and records which report came when."""

    metric = "loss"

    def __init__(self, stops=""):
        super().__init__()
        self.received, self.stops = [], stops

    def on_trial_result(self, controller, trial, result):
        self.received.append((trial.trial_id, result["step"]))
        return TrialScheduler.STOP if trial.trial_id in self.stops else TrialScheduler.CONTINUE


class Controller:
    """Ray Tune's, as a scheduler sees it: its inner one is itself."""

    def __init__(self, scheduler):
        self.scheduler, self._tune_controller = scheduler, self
        self.trials, self.continued, self.stopped = {}, [], []

    def run(self, *ids):
        for id in ids:
            self.trials[id] = Trial("trainable", trial_id=id, stub=True)
            self.trials[id].set_status(Trial.RUNNING)
            self.scheduler.on_trial_add(self, self.trials[id])
        self.turn()

    def turn(self, times=1):
        for _ in range(times):
            self.scheduler.choose_trial_to_run(self)

    def report(self, id, loss, step=1):
        return self.scheduler.on_trial_result(self, self.trials[id], {"step": step, "loss": loss})

    def get_live_trials(self):
        return set(self.trials.values())

    get_trials = get_live_trials

    def _schedule_trial_train(self, trial):
        self.continued.append(trial.trial_id)

    def stop_trial(self, trial):
        self.stopped.append(trial.trial_id)
        self.scheduler.on_trial_complete(self, trial, {})
        del self.trials[trial.trial_id]


def best_first(values):
    return sorted(range(len(values)), key=values.__getitem__)


def controller(scheduler=None, *, order=best_first, lower_is_better=True):
    clock = Clock()
    found = Controller(BatchedScheduler(scheduler or Recording(), order, lower_is_better=lower_is_better, clock=clock))
    return found, clock


def received(found):
    return [id for id, _ in found.scheduler.scheduler.received]


def test_nobody_is_decided_on_before_all_that_are_about_to_report():
    sweep, clock = controller(Recording(stops="a"))
    sweep.run("a", "b", "c")
    clock.now = 10.0
    assert sweep.report("a", 0.3) == TrialScheduler.NOOP
    sweep.turn()
    sweep.report("b", 0.1)
    sweep.turn()
    assert not received(sweep) and not sweep.continued
    sweep.report("c", 0.2)
    sweep.turn()
    assert received(sweep) == ["b", "c", "a"]
    assert (sweep.continued, sweep.stopped) == (["b", "c"], [])
    sweep.turn()
    assert sweep.stopped == ["a"]


def test_between_two_stops_ray_tune_may_begin_the_next_trial():
    """It keeps one process for it, and would end that of the second stop."""
    sweep, clock = controller(Recording(stops="ab"))
    sweep.run("a", "b")
    clock.now = 10.0
    sweep.report("a", 0.3)
    sweep.report("b", 0.1)
    ended = []
    for _ in range(4):
        sweep.turn()
        ended.append("".join(sweep.stopped))
    assert ended == ["", "b", "b", "ba"]


def test_who_has_just_begun_is_not_waited_for():
    sweep, clock = controller()
    sweep.run("a")
    clock.now = 5.0
    sweep.run("late")
    clock.now = 10.0
    sweep.report("a", 0.3)
    sweep.turn()
    assert sweep.continued == ["a"]


@pytest.mark.parametrize(("took", "patience"), [(10.0, SHARE * 10.0), (1e3, MOST_SECONDS)])
def test_the_others_are_waited_for_only_so_long(took, patience):
    sweep, clock = controller()
    sweep.run("a", "b")
    clock.now = took
    sweep.report("a", 0.3)
    clock.now = took + 0.9 * patience
    sweep.turn()
    assert not received(sweep)
    clock.now = took + patience
    sweep.turn()
    assert received(sweep) == ["a"]


def test_lower_steps_come_first_nan_last_and_higher_may_be_better():
    sweep, clock = controller(lower_is_better=False)
    sweep.run("a", "b", "c", "d")
    clock.now = 10.0
    for id, loss, step in [("a", 0.3, 2), ("b", math.nan, 2), ("c", 0.4, 2), ("d", 0.0, 1)]:
        sweep.report(id, loss, step)
    sweep.turn()
    assert received(sweep) == ["d", "c", "a", "b"]


def test_of_a_trial_that_dies_while_it_is_held_nothing_is_passed_on():
    """It repeats its report when it is back."""
    sweep, clock = controller()
    sweep.run("a", "b")
    clock.now = 10.0
    sweep.report("a", 0.3)
    sweep.scheduler.on_trial_error(sweep, sweep.trials["a"])
    sweep.report("b", 0.2)
    sweep.turn()
    assert received(sweep) == ["b"]


def test_a_trial_that_dies_before_its_stop_is_ray_tunes_to_try_again():
    sweep, clock = controller(Recording(stops="a"))
    sweep.run("a")
    clock.now = 10.0
    sweep.report("a", 0.3)
    sweep.turn()
    sweep.scheduler.on_trial_error(sweep, sweep.trials["a"])
    sweep.turn(2)
    assert received(sweep) == ["a"] and not sweep.stopped


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20, unique=True), st.integers(2, 4))
def test_asha_passes_just_the_best_of_those_held(losses, factor):
    """Ray Tune's own ASHA, which knows of each only those that it received before."""
    settings = ASHA(grace_steps=1, reduction_factor=factor)
    sweep, clock = controller(settings.build("loss", "min", 100), order=settings.order)
    sweep.run(*map(str, range(len(losses))))
    clock.now = 1.0
    for place, loss in enumerate(losses):
        sweep.report(str(place), loss)
    sweep.turn(2 * len(losses))
    best = best_first(losses)[: math.ceil(len(losses) / factor)]
    assert set(map(int, sweep.continued)) == set(best)
    assert len(sweep.stopped) == len(losses) - len(best)


@pytest.mark.usefixtures("ray_session")
def test_ray_tune_continues_as_decided_and_keeps_its_processes(tmp_path):
    """The best comes last of four, so that passed on one by one all would pass; a process serves many trials."""

    def barely_a_trial(config):
        """Reports its own number at three steps; the first four trials come to the second, the judged one, at once."""
        tune.report({"step": 1, "loss": float(config["number"]), "process": os.getpid()})
        Path(config["folder"], str(config["number"])).touch()
        deadline = time.monotonic() + 60
        while len(os.listdir(config["folder"])) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(6)  # reports of one moment come apart on a busy machine: a share of this is how far they may
        tune.report({"step": 2, "loss": float(config["number"]), "process": os.getpid()})
        time.sleep(3)  # else it ends while others are being stopped, and Ray Tune keeps one of two processes
        tune.report({"step": 3, "loss": float(config["number"]), "process": os.getpid()})

    (tmp_path / "begun").mkdir()
    settings = ASHA(grace_steps=2, reduction_factor=4)
    results = tune.Tuner(
        tune.with_resources(barely_a_trial, {"cpu": 0.001}),
        param_space={"number": tune.grid_search([4, 3, 2, 1, 8, 7, 6, 5]), "folder": str(tmp_path / "begun")},
        tune_config=tune.TuneConfig(
            scheduler=BatchedScheduler(settings.build("loss", "min", 3), settings.order, lower_is_better=True),
            max_concurrent_trials=4,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    assert {r.config["number"]: r.metrics["step"] for r in results} == {1: 3, **dict.fromkeys(range(2, 9), 2)}
    assert len({r.metrics["process"] for r in results}) == 4
