"""What trackers are shown of a job, and that one of them which fails takes nothing away."""

from types import SimpleNamespace

import pytest

from raytune_llm.errors import InputError
from raytune_llm.jobs import tracking
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.leaderboard import Row
from raytune_llm.training.objective import Report
from raytune_llm.training.tracking.background import BackgroundRun
from raytune_llm.training.tracking.base import JobTracker
from raytune_llm.training.tracking.jsonl import JSONL


class Shown:
    takes_one_run = False

    def __init__(self, error=None):
        self.error, self.begun, self.ends = error, [], []

    def begin_job(self, info):
        self.begun.append(info)
        if self.error:
            raise self.error

    def end_job(self, end):
        if self.error:
            raise self.error
        self.ends.append(end)


def job_with(**trackers):
    return SimpleNamespace(tracking=trackers)


def test_a_tracker_that_fails_at_the_end_is_named_in_one_line_and_the_others_go_their_way(capsys):
    sound = Shown()
    tracking._show(
        job_with(broken=Shown(RuntimeError("no route to host\nand more")), sound=sound, lines=JSONL()), "end"
    )
    expected = "! tracking.broken: RuntimeError: no route to host; the version stays published\n"
    assert (capsys.readouterr().out, sound.ends) == (expected, ["end"])
    assert isinstance(sound, JobTracker) and not isinstance(JSONL(), JobTracker)


def test_an_error_of_the_thread_is_one_of_the_end(capsys):
    def broken():
        raise ValueError("no store")

    assert not tracking.attempt("mlflow", lambda: BackgroundRun(broken) and None)
    assert capsys.readouterr().out == "! tracking.mlflow: ValueError: no store; the version stays published\n"


def test_a_tracker_that_cannot_be_used_ends_the_job_before_it_trains():
    with pytest.raises(InputError, match="no key"):
        tracking._begin(job_with(broken=Shown(InputError("no key"))), "info")


def test_the_leaderboard_has_a_cell_for_each_column():
    rows = [
        Row(
            "t2", {"tuning.adapter_size": 4}, Report(step=20, metrics={"eval/loss": 0.2, "train/loss": 0.1}), "complete"
        ),
        Row("t1", {"seed": 7}, Report(step=10, metrics={"eval/loss": 0.3, "train/loss": 0.4}), "scheduler"),
    ]
    columns, cells = tracking.leaderboard_cells(rows, "eval/loss")
    assert columns == ("place", "trial", "adapter_size", "seed", "best_step", "eval/loss", "train/loss", "ended")
    assert cells == ((1, "t2", 4, None, 20, 0.2, 0.1, "complete"), (2, "t1", None, 7, 10, 0.3, 0.4, "scheduler"))


def test_axes_are_plain_data():
    assert tracking.described(Axis(choices=(1, 4))) == {"values": [1, 4]}
    ranged = Axis(low=0.1, high=10.0, distribution="log_uniform")
    assert tracking.described(ranged) == {"min": 0.1, "max": 10.0, "distribution": "log_uniform"}
