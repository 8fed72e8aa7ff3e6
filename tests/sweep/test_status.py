"""How far a run is, as its driver notes it."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from raytune_llm.errors import InputError
from raytune_llm.sweep import status
from raytune_llm.sweep.status import Best, State, read_status, reporting, write_status

ROOT = Path(__file__).parents[2]
SWEEP = {"command": "sweep", "name": "wit", "run": "r"}


@pytest.fixture(params=["local", "memory"])
def run_dir(request, tmp_path):
    return str(tmp_path / "runs/wit/r") if request.param == "local" else f"memory://{uuid.uuid4().hex}/runs/wit/r"


def test_a_run_is_followed_from_its_checks_to_its_end(run_dir):
    assert read_status(run_dir) is None
    with reporting(run_dir, **SWEEP):
        first = read_status(run_dir)
        assert (first.command, first.name, first.run, first.state) == ("sweep", "wit", "r", State.checking)
        assert first.pid == os.getpid() and first.process_runs and first.owner
        status.update(state=State.running, num_trials=40, num_ended=3, best=Best(value=0.5, trial="t0002", step=50))
        status.update(note="so far so good")
        deadline = time.monotonic() + 60
        while (found := read_status(run_dir)).note == "" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found.state is State.running and found.best.trial == "t0002"
    last = read_status(run_dir)
    assert last.state is State.ended and last.note == "" and (last.num_trials, last.num_ended) == (40, 3)
    assert last.updated >= last.started == first.started


def test_outside_of_a_run_nothing_is_noted(tmp_path):
    status.update(state=State.running)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "state", "note"),
    [
        (InputError("the first line\nthe second"), State.failed, "the first line"),
        (KeyboardInterrupt(), State.cancelled, "interrupted; the same command with run= resumes it"),
        (SystemExit(signal.SIGTERM), State.cancelled, "interrupted; the same command with run= resumes it"),
    ],
)
def test_how_a_run_that_breaks_off_is_seen(run_dir, error, state, note):
    with pytest.raises(type(error)), reporting(run_dir, **SWEEP):
        raise error
    found = read_status(run_dir)
    assert (found.state, found.note) == (state, note)


def test_a_cancelled_sweep_stays_cancelled(run_dir):
    with pytest.raises(InputError), reporting(run_dir, **SWEEP):
        status.update(state=State.cancelled, note="by a command")
        raise InputError("the sweep was cancelled")
    assert (read_status(run_dir).state, read_status(run_dir).note) == (State.cancelled, "by a command")


def test_a_resumed_run_keeps_what_is_known_of_it(run_dir):
    with pytest.raises(ZeroDivisionError), reporting(run_dir, **SWEEP):
        status.update(state=State.running, num_ended=7, usd=1.5)
        1 / 0  # noqa: B018
    before = read_status(run_dir)
    with reporting(run_dir, **SWEEP):
        again = read_status(run_dir)
    assert (again.state, again.note, again.num_ended, again.usd) == (State.checking, "", 7, 1.5)
    assert again.started == before.started


def test_a_submitted_job_names_its_owner_and_its_id(run_dir, monkeypatch):
    metadata = {"owner": "ada", "job_submission_id": "raysubmit_1"}
    monkeypatch.setenv(status.JOB_CONFIG, json.dumps({"metadata": metadata}))
    with reporting(run_dir, **SWEEP):
        found = read_status(run_dir)
    assert (found.owner, found.submission) == ("ada", "raysubmit_1")


def test_numbers_that_json_lacks_come_back(run_dir):
    with reporting(run_dir, **SWEEP):
        status.update(best=Best(value=float("inf"), trial="t0001", step=5))
    assert read_status(run_dir).best.value == float("inf")


def test_a_damaged_status_is_named(tmp_path):
    (tmp_path / "control").mkdir()
    (tmp_path / "control/status.json").write_text("{")
    with pytest.raises(InputError, match=r"control/status.json is damaged; remove it"):
        read_status(str(tmp_path))


def test_a_storage_that_fails_does_not_end_the_run(tmp_path, capsys):
    with reporting(str(tmp_path / "run"), **SWEEP):
        (tmp_path / "run/control/status.json").unlink()
        (tmp_path / "run/control").rmdir()
        (tmp_path / "run/control").write_text("a file where a folder should be")
    assert "! the run's status can't be written" in capsys.readouterr().out


DRIVER = """
import sys, time
from raytune_llm.sweep.status import reporting
with reporting(sys.argv[1], command="sweep", name="wit", run="r"):
    print("inside", flush=True)
    time.sleep(600)
"""


def test_a_killed_driver_is_lost_once_its_status_is_old(tmp_path):
    run_dir = str(tmp_path)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, run_dir], stdout=subprocess.PIPE, cwd=ROOT)
    driver.stdout.readline()
    alive = read_status(run_dir)
    assert alive.process_runs and not alive.is_lost(alive.updated + 3600), "its process is seen"
    driver.kill()
    driver.wait()
    dead = read_status(run_dir)
    assert not dead.process_runs
    assert not dead.is_lost(dead.updated + 5) and dead.is_lost(dead.updated + 20)
    elsewhere = replace(dead, host="another-machine")
    assert not elsewhere.is_lost(dead.updated + 50) and elsewhere.is_lost(dead.updated + 70)
    write_status(run_dir, replace(dead, state=State.cancelled))
    assert not read_status(run_dir).is_lost(dead.updated + 3600), "a run that has ended isn't lost"


def test_another_process_of_the_same_id_is_not_the_driver(tmp_path):
    with reporting(str(tmp_path), **SWEEP):
        found = read_status(str(tmp_path))
    assert not replace(found, process=found.process + 1).process_runs
