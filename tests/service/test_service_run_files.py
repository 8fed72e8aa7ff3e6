"""What runs write is read back: lines as they grow, half-written ones left out, on a disk and in an object store."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from raytune_llm.errors import InputError
from raytune_llm.service import run_files
from raytune_llm.service.run_files import RunFiles
from raytune_llm.stores.storage import open_storage
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.base import RunInfo
from raytune_llm.training.tracking.jsonl import JSONL

OBJECTIVE = Objective("eval/loss", lower_is_better=True)


def started(home, trial, from_step=0, name="wit", run="first"):
    """The log of a trial, as runs write it."""
    directory = f"{home}/runs/{name}/{run}/trials/{trial}"
    return JSONL().start(
        RunInfo(
            name=trial, group=None, config={}, directory=directory, from_step=from_step, home="", objective=OBJECTIVE
        )
    )


def steps(files):
    return {trial.id: [point.step for point in trial.points] for trial in files.trials()}


@pytest.fixture
def home(tmp_path):
    return str(tmp_path)


def test_nothing_is_there_before_the_run_begins(home):
    files = RunFiles(home, "wit", "first")
    assert files.trials() == [] and files.outcome() is None and files.leaderboard() == []
    assert files.file("data/report.html") is None


def test_lines_are_read_as_they_grow(home, monkeypatch):
    log = started(home, "train")
    log.log(1, {"train/loss": 2.0})
    first, again = RunFiles(home, "wit", "first"), RunFiles(home, "wit", "first")
    [trial] = first.trials()
    assert trial.id == "train" and trial.values == {} and trial.points[0].metrics == {"train/loss": 2.0}
    assert trial.points[0].time > 0
    log.log(2, {"eval/loss": math.nan, "train/loss": math.inf})
    parsed = []
    monkeypatch.setattr(run_files, "_point", lambda line, own=run_files._point: parsed.append(line) or own(line))
    [trial] = again.trials()
    assert [point.step for point in trial.points] == [1, 2] and len(parsed) == 1, "only the new line is read"
    assert math.isnan(trial.points[1].metrics["eval/loss"]) and trial.points[1].metrics["train/loss"] == math.inf


def test_a_half_written_line_is_left_out_until_it_is_whole(home):
    started(home, "train").log(1, {"train/loss": 2.0})
    file = Path(home, "runs/wit/first/trials/train/metrics.jsonl")
    files = RunFiles(home, "wit", "first")
    with file.open("ab") as lines:
        lines.write(b'{"step": 2, "time": 5.0, "tra')
        lines.flush()
        assert steps(files) == {"train": [1]}
        lines.write(b'in/loss": 1.0}\nnot json\n{"step": 3}\n[1]\n{"step": 4, "time": "6"}\n')
    assert steps(files) == {"train": [1, 2, 4]}, "damaged lines are left out"


def test_a_resumed_trial_has_no_line_twice(home):
    log = started(home, "train")
    for step in (1, 2, 3):
        log.log(step, {"train/loss": 1.0})
    files = RunFiles(home, "wit", "first")
    assert steps(files) == {"train": [1, 2, 3]}
    log = started(home, "train", from_step=2)
    assert steps(files) == {"train": [1, 2]}
    log.log(3, {"train/loss": 1.0})
    assert steps(files) == {"train": [1, 2, 3]}
    file = Path(home, "runs/wit/first/trials/train/metrics.jsonl")
    os.truncate(file, 0)
    assert steps(files) == {"train": []}


def test_trials_of_a_sweep_have_values_and_other_folders_are_none(home):
    for place, trial in enumerate(("b_1", "a_0")):
        started(home, trial).log(1, {"eval/loss": 1.0})
        params = Path(home, f"runs/wit/first/trials/{trial}/trial.json")
        if place:
            params.write_text('{"values": {"tuning.ba')
            assert [t.values for t in RunFiles(home, "wit", "first").trials() if t.id == trial] == [{}]
        params.write_text(json.dumps({"values": {"tuning.batch_size": 4 + place}}))
    Path(home, "runs/wit/first/trials/pack_0").mkdir()
    started(home, "train", name="wit-sft").log(1, {"train/loss": 1.0})
    found = RunFiles(home, "wit", "first").trials()
    assert [(trial.id, trial.values) for trial in found] == [
        ("a_0", {"tuning.batch_size": 5}),
        ("b_1", {"tuning.batch_size": 4}),
    ]


def test_an_object_store_is_read_now_and_then(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(run_files.time, "monotonic", lambda: now.seconds)
    home = "memory://run-files/home"
    storage = open_storage(f"{home}/runs/wit/first")
    line = b'{"step": %d, "time": 1.0, "eval/loss": 0.5}\n'
    storage.write("trials/x/metrics.jsonl", line % 1)
    files = RunFiles(home, "wit", "first")
    assert steps(files) == {"x": [1]}
    storage.write("trials/x/metrics.jsonl", line % 1 + line % 2 + b'{"st')
    assert steps(files) == {"x": [1]}
    now.seconds = run_files.REMOTE_SECONDS
    assert steps(files) == {"x": [1, 2]}
    storage.write("result.json", b'{"version": "wit@1", "metrics": {"eval/loss": "NaN"}}')
    assert math.isnan(files.outcome()["metrics"]["eval/loss"]) and files.outcome()["version"] == "wit@1"


def test_files_are_of_a_fixed_set(home):
    folder = Path(home, "runs/wit/first")
    (folder / "data").mkdir(parents=True)
    (folder / "data/report.html").write_text("<p>")
    (folder / "secret").write_text("x")
    (folder / "leaderboard.csv").write_text('trial,eval/loss,ended\nx,0.1,"stopped: ""a"", b"\ny,0.2,complete\n')
    files = RunFiles(home, "wit", "first")
    assert files.file("data/report.html") == b"<p>"
    for name in ("secret", "../first/secret", "/etc/passwd", "data/../secret", "", "data"):
        assert files.file(name) is None
    assert [row["trial"] for row in files.leaderboard()] == ["x", "y"]
    assert files.leaderboard()[0]["ended"] == 'stopped: "a", b'


@pytest.mark.parametrize("names", [("../wit", "first"), ("wit", "../first"), ("wit", ""), ("a/b", "c")])
def test_names_are_no_paths(home, names):
    with pytest.raises(InputError):
        RunFiles(home, *names)
