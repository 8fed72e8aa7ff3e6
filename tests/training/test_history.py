import math

from raytune_llm.training.config import EarlyStopping
from raytune_llm.training.history import History, read_reports, stored_step
from raytune_llm.training.objective import Objective

LOSS = Objective("eval/loss", lower_is_better=True)
STOP = EarlyStopping(patience=2, min_delta=0.0)


def history(*losses):
    result = History(LOSS)
    for i, loss in enumerate(losses, 1):
        result.add(10 * i, {"eval/loss": loss})
    return result


def test_best_and_last():
    h = history(3.0, 1.0, 2.0)
    assert (h.best.step, h.last.step) == (20, 30)


def test_a_report_at_which_the_method_ends_the_training_is_not_the_best():
    h = history(3.0, 2.0)
    h.add(30, {"eval/loss": 1.0}, stopped="repeated text: lower it")
    assert (h.best.step, h.last.step, h.why_stop(STOP)) == (20, 30, "repeated text: lower it")


def test_work_redone_after_a_crash_replaces_what_was_reported():
    h = history(3.0, 1.0, 2.0)
    h.add(20, {"eval/loss": 1.5})
    assert [r.step for r in h.reports] == [10, 20]
    assert h.best.metrics["eval/loss"] == 1.5


def test_survives_its_file(tmp_path):
    h = history(3.0, 1.0)
    h.seconds = 12.5
    h.save(tmp_path)
    assert History.load(tmp_path, LOSS) == h
    assert read_reports(str(tmp_path)) == h.reports
    assert (stored_step(tmp_path), stored_step(None)) == (20, 0)


def test_divergence_is_infinite_loss_and_stops_with_advice():
    h = history(3.0, math.nan)
    assert h.last.metrics["eval/loss"] == math.inf
    assert h.best.step == 10
    assert "learning_rate_multiplier" in h.why_stop(STOP)


def test_a_diverged_trial_survives_its_file(tmp_path):
    h = history(3.0, math.nan)
    h.save(tmp_path)
    assert History.load(tmp_path, LOSS).last.metrics["eval/loss"] == math.inf


def test_the_best_up_to_a_step_is_what_a_shorter_trial_would_have_kept():
    h = history(3.0, 1.0, 2.0, 0.5)
    assert LOSS.best(h.reports, up_to=5) is None
    assert LOSS.best(h.reports, up_to=30).step == 20
    assert LOSS.best(h.reports, up_to=40).step == 40


def test_early_stopping_says_so():
    assert history(1.0, 2.0).why_stop(STOP) is None
    assert history(1.0, 2.0, 3.0).why_stop(STOP) == "early stopping"


def test_a_trial_ends_by_a_reason_to_stop_or_at_its_last_step():
    assert history(3.0, 2.0).why_ended(STOP, 30) is None
    assert history(3.0, 2.0).why_ended(STOP, 20) == "complete"
    assert history(1.0, 2.0, 3.0).why_ended(STOP, 30) == "early stopping"
    assert History(LOSS).why_ended(STOP, 1) is None
