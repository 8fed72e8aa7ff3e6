"""A live trial's reports, checkpoint folder and log; how it ended, read from its checkpoint."""

import math

import pytest
from worlds import spec_of

from raytune_llm.jobs.config import load
from raytune_llm.training.outcome import read_outcome
from raytune_llm.training.reporting import LiveTrial


class Log:
    def __init__(self):
        self.lines = []

    def log(self, step, metrics):
        self.lines.append((step, dict(metrics)))

    def finish(self, summary, failed): ...


class Numbered:
    """Writes the step into its files."""

    def __init__(self, step):
        self.step = step

    def save_state(self, folder):
        folder.mkdir()
        (folder / "step").write_text(str(self.step))

    save_weights = save_state


@pytest.fixture(scope="module")
def spec():
    tuning = ["tuning.steps=30", "tuning.eval_every=10", "tuning.early_stopping.patience=2"]
    return spec_of(load("train", ["model=demo", "data=demo_sarcasm", *tuning]), milestones=[5])


def live(spec, folder, num_gpus=0, resume=None):
    return LiveTrial(spec, Log(), folder, num_gpus=num_gpus, resume=resume)


def report(trial, step, loss, seconds=1.0):
    return trial.report(step, {"eval/loss": loss}, seconds=seconds, saver=Numbered(step))


def test_a_report_has_the_mean_training_loss_since_the_last_one_and_its_cost(spec, tmp_path):
    trial = live(spec, tmp_path / "t", num_gpus=2)
    for loss in (3.0, 1.0):
        trial.add_loss(loss)
    found = report(trial, 10, 0.5, seconds=1800.0).metrics
    assert found == {"eval/loss": 0.5, "train/loss": 2.0, "time/seconds": 1800.0, "cost/gpu_hours": 1.0}
    assert report(trial, 20, 0.4).metrics["train/loss"] == 0.0
    assert trial.run.lines[0] == (10, found)


def test_the_folder_has_the_newest_state_and_the_best_weights_and_is_resumed(spec, tmp_path):
    trial = live(spec, tmp_path / "t")
    for step, loss in ((10, 2.0), (20, 1.0), (30, math.nan)):
        report(trial, step, loss)
    assert (tmp_path / "t" / "state" / "step").read_text() == "30"
    assert (tmp_path / "t" / "best" / "step").read_text() == "20"
    again = live(spec, tmp_path / "again", resume=tmp_path / "t")
    assert again.history == trial.history and (tmp_path / "again" / "best" / "step").read_text() == "20"


def test_without_a_saver_nothing_is_written(spec, tmp_path):
    trial = live(spec, tmp_path / "t")
    trial.report(10, {"eval/loss": 1.0}, seconds=1.0, saver=None)
    assert not (tmp_path / "t").exists() and trial.history.best.step == 10


def test_reports_are_due_at_evaluations_at_milestones_and_at_the_end(spec, tmp_path):
    trial = live(spec, tmp_path / "t")
    assert [step for step in range(1, 32) if trial.is_due(step)] == [5, 10, 20, 30, 31]
    report(trial, 10, 1.0)
    assert [step for step in range(1, 32) if trial.is_due(step)] == [20, 30, 31], "what has been reported is not again"


@pytest.mark.parametrize(
    ("losses", "ended"),
    [((3.0, 2.0, 1.0), "complete"), ((1.0, 2.0, 3.0), "early stopping"), ((3.0, 2.0), "scheduler")],
)
def test_an_outcome_is_read_from_the_checkpoint(spec, tmp_path, losses, ended):
    trial = live(spec, tmp_path / "t")
    for number, loss in enumerate(losses, 1):
        report(trial, 10 * number, loss, seconds=2.0 * number)
    assert trial.ended == (None if ended == "scheduler" else ended)
    outcome = read_outcome(spec, str(tmp_path / "t"), None)
    assert (outcome.ended, outcome.seconds, outcome.checkpoint) == (ended, 2.0 * len(losses), str(tmp_path / "t"))
    assert outcome.best == trial.history.best and list(outcome.reports) == trial.history.reports
    assert read_outcome(spec, str(tmp_path / "t"), RuntimeError("boom")).ended == "failed: boom"


def test_a_trial_without_a_checkpoint_failed(spec):
    outcome = read_outcome(spec, None, RuntimeError("boom"))
    assert (outcome.ended, outcome.reports, outcome.best, outcome.checkpoint) == ("failed: boom", (), None, None)
