"""What a job keeps of its prediction, and when it keeps nothing."""

from dataclasses import asdict
from types import SimpleNamespace

from test_forecast import workload

from raytune_llm.jobs.clock import Clock
from raytune_llm.jobs.prediction import Prediction
from raytune_llm.sweep.forecast import make_forecast
from raytune_llm.training.config import Outcome, Trial
from raytune_llm.training.objective import Report


def predicted(*, is_whole=True):
    times = iter([0.0, 4.0, 104.0, 114.0, 114.0, 114.0])
    clock = Clock(lambda: next(times))
    clock.lap("start")
    clock.lap("training")
    prediction = Prediction(SimpleNamespace(clock=clock), None, None, forecast=make_forecast(workload()))
    reports = (Report(step=10, metrics={}), Report(step=20, metrics={}))
    outcome = Outcome(
        trial=Trial(id="t", values={}), reports=reports, best=None, checkpoint=None, seconds=1.0, ended="complete"
    )
    prediction.trained([outcome, outcome], memory_bytes=190, is_whole=is_whole)
    return prediction


def test_the_card_has_what_was_predicted_and_what_it_took():
    prediction = predicted()
    kept = prediction.record()
    assert kept["actual"] == {
        "start": 4.0,
        "training": 100.0,
        "comparing": 10.0,
        "trial_steps": 40,
        "memory_bytes": 190,
    }
    assert kept["predicted"] == asdict(prediction.forecast.expected) == kept["raw"]
    assert (kept["source"], kept["device"], kept["num_trials"]) == ("measured", "CPU", 4)
    ((name, line),) = prediction.lines()
    assert name == "predicted"
    assert line.startswith("114 s, predicted ")


def test_a_resumed_job_and_one_without_a_prediction_keep_nothing():
    resumed = predicted(is_whole=False)
    assert (resumed.record(), resumed.lines()) == ({}, [])
    nothing = Prediction(resumed.started, None, None)
    assert (nothing.record(), nothing.lines()) == ({}, [])
