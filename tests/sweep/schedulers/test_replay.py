"""Ray Tune's own schedulers, given again after a restart what was reported before it."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from raytune_llm.sweep.schedulers.asha import ASHA
from raytune_llm.sweep.schedulers.hyperband import HyperBand
from raytune_llm.sweep.schedulers.median import Median
from raytune_llm.sweep.schedulers.replay import ReplayingScheduler, checkpointed
from raytune_llm.training.history import FILE, History
from raytune_llm.training.objective import Objective, Report

STEPS = (2, 4, 6, 8)
SCHEDULERS = {"asha": ASHA(grace_steps=2, reduction_factor=2), "median": Median(grace_steps=2, min_trials=1)}


@dataclass(frozen=True)
class FakeTrial:
    """As much of a trial as schedulers look at."""

    trial_id: str
    status: str = field(default=Trial.PENDING, compare=False)


class FakeController:
    """With no other trials waiting for a place."""

    def get_live_trials(self):
        return set()


CONTROLLER = FakeController()


def curves(seed, count):
    drawn = np.random.default_rng(seed).random((count, len(STEPS)))
    return {
        f"t{i}": [Report(step=s, metrics={"eval/loss": v}) for s, v in zip(STEPS, drawn[i], strict=True)]
        for i in range(count)
    }


def built(config, reported):
    scheduler = config.build("eval/loss", "min", STEPS[-1])
    return ReplayingScheduler(scheduler, lambda id: reported.get(id, ()), finished_too=config.replays)


def result(report):
    return {**report.metrics, "step": report.step}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("seed", range(5))
def test_decisions_after_a_restart_are_those_without_one(name, seed):
    """Every trial runs to its end or its stop; the restart falls after the third of six."""
    reports = curves(seed, 6)
    decisions = {}
    for restarted in (False, True):
        scheduler, reported = built(SCHEDULERS[name], {}), {}
        for place, (id, curve) in enumerate(reports.items()):
            if restarted and place == 3:
                scheduler = built(SCHEDULERS[name], reported)
                for before in reported:
                    scheduler.on_trial_add(CONTROLLER, FakeTrial(before, Trial.TERMINATED))
            scheduler.on_trial_add(CONTROLLER, FakeTrial(id))
            for report in curve:
                reported.setdefault(id, []).append(report)
                decision = scheduler.on_trial_result(CONTROLLER, FakeTrial(id), result(report))
                decisions.setdefault(restarted, []).append((id, report.step, decision))
                if decision == "STOP":
                    break
            scheduler.on_trial_complete(CONTROLLER, FakeTrial(id), result(reported[id][-1]))
    assert decisions[True] == decisions[False]
    assert "STOP" in {decision for *_, decision in decisions[False]}


def test_asha_without_the_replay_would_forget_its_rungs():
    reports = curves(0, 4)
    asha = built(SCHEDULERS["asha"], reports)
    for id in reports:
        asha.on_trial_add(CONTROLLER, FakeTrial(id, Trial.TERMINATED))
    rungs = {milestone: set(recorded) for milestone, recorded in asha.scheduler._brackets[0]._rungs}
    assert set(reports) == rungs[2]


def test_a_repeated_report_is_passed_on_once_and_its_stop_stands():
    reports = curves(1, 2)
    asha = built(SCHEDULERS["asha"], {})
    best, worst = sorted(reports, key=lambda id: reports[id][0].metrics["eval/loss"])
    for id in (best, worst):
        asha.on_trial_add(CONTROLLER, FakeTrial(id))
    asha.on_trial_result(CONTROLLER, FakeTrial(best), result(reports[best][0]))
    assert asha.on_trial_result(CONTROLLER, FakeTrial(worst), result(reports[worst][0])) == "STOP"
    assert asha.on_trial_result(CONTROLLER, FakeTrial(worst), result(reports[worst][0])) == "STOP"
    assert asha.scheduler._num_stopped == 1


def test_a_trial_that_was_paused_resumes_when_it_repeats_its_last_report():
    class Pausing(FIFOScheduler):
        def on_trial_result(self, tune_controller, trial, result):
            return "PAUSE"

    scheduler = ReplayingScheduler(Pausing(), lambda id: (), finished_too=True)
    report = {"eval/loss": 1.0, "step": 2}
    assert scheduler.on_trial_result(CONTROLLER, FakeTrial("a"), report) == "PAUSE"
    assert scheduler.on_trial_result(CONTROLLER, FakeTrial("a"), report) == "CONTINUE"


def test_hyperband_begins_anew_with_the_unfinished_trials():
    reports = curves(2, 2)
    hyperband = built(HyperBand(reduction_factor=3), reports)
    hyperband.on_trial_add(CONTROLLER, FakeTrial("t0", Trial.TERMINATED))
    waiting = FakeTrial("t1")
    hyperband.on_trial_add(CONTROLLER, waiting)
    assert hyperband.choose_trial_to_run(CONTROLLER) is waiting
    assert [t.trial_id for t in hyperband.scheduler._state["bracket"].current_trials()] == ["t1"]


def test_reports_are_read_from_the_newest_checkpoint(tmp_path):
    history = History(Objective("eval/loss", lower_is_better=True))
    for step in (2, 4):
        history.add(step, {"eval/loss": 1 / step})
    folder = tmp_path / "a" / "checkpoint_000004"
    folder.mkdir(parents=True)
    history.save(folder)
    assert (folder / FILE).exists()
    assert checkpointed(str(tmp_path), "a") == history.reports
    assert checkpointed(str(tmp_path), "b") == ()
