"""jobs/control.py on runs whose files are there: what it shows, sends, refuses and ends."""

import json
import math
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raytune_llm.errors import InputError
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.jobs.control_tables import curve_scale
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep import status
from raytune_llm.sweep.control import Action, Commands
from raytune_llm.sweep.status import Best, State, read_status, reporting, write_status
from raytune_llm.sweep.trial_store import Ending, Origin, TrialStore
from raytune_llm.sweep.trial_views import read_trials
from raytune_llm.training.curves import curve_line
from raytune_llm.training.objective import Objective, Report

ROOT = Path(__file__).parents[2]
RATE = "tuning.learning_rate_multiplier"
CURVES = {"t0001": (2.0, 1.5, 1.4), "t0002": (2.2, math.inf), "t0003": (1.9, 1.1, 1.2), "t0004": ()}
LOSS = Objective("eval/loss", lower_is_better=True)


def control(home, *overrides):
    return commands.control(load("control", [f"home={home}", *overrides]))


@pytest.fixture(params=["local", "memory"])
def home(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def write_curve(run_dir, id, curve):
    """A checkpoint as trials leave it."""
    step = 10 * len(curve)
    reports = [Report(step=10 * place, metrics={"eval/loss": loss}) for place, loss in enumerate(curve, 1)]
    history = {"metric": "eval/loss", "seconds": 1.0, "reports": [asdict(report) for report in reports]}
    open_storage(f"{run_dir}/trials/{id}").write(f"checkpoint_{step:06d}/history.json", json.dumps(history).encode())


def write_sweep(home, name="wit", run="r1", **changes):
    """The files of a sweep of four trials, and its driver's status."""
    run_dir = f"{home}/runs/{name}/{run}"
    with reporting(run_dir, command="sweep", name=name, run=run):
        status.update(metric="eval/loss", lower_is_better=True, num_trials=6, num_ended=1)
        status.update(steps_done=60, steps_total=180, best=Best(value=1.1, trial="t0003", step=20), usd=0.5)
    write_status(run_dir, replace(read_status(run_dir), **{"state": State.running, **changes}))
    store = TrialStore.read(run_dir)
    for id, curve in CURVES.items():
        store.create({RATE: 0.5, "tuning.adapter_size": 4}, Origin.search)
        if curve:
            write_curve(run_dir, id, curve)
    store.end("t0002", Ending(why="diverged: eval/loss is not finite at step 20", checkpoint="checkpoint_000020"))
    return run_dir


def test_trials_are_listed_best_first_with_their_curves(home, capsys):
    run_dir = write_sweep(home)
    TrialStore.read(run_dir).create({RATE: 0.2}, Origin.clone, parent="t0003", command="c")
    assert control(home, "run=wit/r1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wit/r1, sweep of ") and "running, 1 of 6 trials ended, best eval/loss 1.1" in lines[0]
    assert lines[2].split()[:6] == ["trial", "learning_rate_multiplier", "adapter_size", "step", "eval/loss", "best"]
    rows = [line.split() for line in lines[4:]]
    assert [row[0] for row in rows] == ["t0003", "t0001", "t0002", "t0004", "t0005"]
    assert rows[0][1:] == ["0.5", "4", "30", "1.2", "1.1", "▆▁▂", "running", "search"]
    assert rows[2][3:] == ["20", "inf", "2.2", "██", "diverged", "search"]
    assert rows[3][-2:] == ["starting", "search"]
    assert rows[4][-4:] == ["starting", "clone", "of", "t0003"]


def test_a_trial_is_shown_whole(home, capsys):
    write_sweep(home)
    control(home, "run=wit/r1", "action=show", "trial=t0003")
    printed = capsys.readouterr().out
    assert "tuning.learning_rate_multiplier" in printed and "checkpoint_000030" in printed
    assert "eval/loss 1.1 at step 20" in printed and "█▁▂" in printed
    control(home, "run=wit/r1", "action=show", "trial=t0002")
    assert "diverged: eval/loss is not finite at step 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lower", "curve", "drawn"),
    [(True, (3.0, 2.0, math.nan), "█▁█"), (False, (0.1, math.inf, 0.8), "▁▁█"), (True, (1.0, 1.0), "▁▁")],
)
def test_a_curve_is_drawn_as_it_runs_and_what_is_not_finite_as_the_worst(lower, curve, drawn):
    objective = Objective("m", lower_is_better=lower)
    low, high = min(filter(math.isfinite, curve)), max(filter(math.isfinite, curve))
    assert curve_line(curve, (low, high), objective) == drawn


def test_a_long_curve_keeps_its_end(home):
    write_curve(f"{home}/r", "train", [100.0 - place for place in range(100)])
    trials = read_trials(f"{home}/r", "eval/loss")
    drawn = curve_line([100.0 - place for place in range(100)], curve_scale(trials, LOSS), LOSS)
    assert len(drawn) == 16 and drawn[0] == "█" and drawn[-1] == "▁"


def test_a_trial_without_a_checkpoint_shows_what_it_logged(home):
    lines = ['{"step": 5, "time": 1.0, "train/loss": 2.0}', '{"step": 10, "time": 2.0, "eval/loss": "NaN"}', '{"st']
    open_storage(f"{home}/r/trials/train").write("metrics.jsonl", "\n".join(lines).encode())
    (trial,) = read_trials(f"{home}/r", "eval/loss")
    assert trial.checkpoint is None and [report.step for report in trial.reports] == [10]


def test_all_runs_are_listed_the_newest_first(home, capsys):
    assert control(home) == 0
    assert "no runs below" in capsys.readouterr().out
    now = time.time()
    write_sweep(home, started=now - 7200, usd=None, gpu_hours=0.25, eta_seconds=600.0)
    write_sweep(home, run="r2", started=now - 10, state=State.ended, process=None)
    write_sweep(home, name="other", started=now - 86400 * 3, process=None, updated=now - 90)
    control(home)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["wit/r2", "sweep", "ended"],
        ["wit/r1", "sweep", "running"],
        ["other/r1", "sweep", "lost"],
    ]
    assert rows[0][3:6] == ["██████████", "100", "%"] and rows[1][3:7] == ["███░░░░░░░", "33", "%", "1/6"]
    assert rows[1][7:11] == ["eval/loss", "1.1", "0.25", "GPU"] and rows[1][12:14] == ["10", "min"]
    assert rows[0][-1] == "s" and rows[1][-2:] == ["2", "h"] and "$0.50" in rows[2]
    control(home, "name=other", "action=jobs")
    assert "wit" not in capsys.readouterr().out


def test_a_train_run_shows_its_one_trial(home, capsys):
    run_dir = f"{home}/runs/wit/solo"
    with reporting(run_dir, command="train", name="wit", run="solo"):
        status.update(metric="eval/loss", lower_is_better=True, num_trials=1, steps_total=40)
    write_status(run_dir, replace(read_status(run_dir), state=State.running))
    write_curve(run_dir, "train", (2.0, 1.5))
    control(home)
    assert "█████░░░░░ 50 %" in capsys.readouterr().out
    control(home, "run=wit/solo")
    assert "eval/loss 1.5 (train at step 20)" in capsys.readouterr().out
    with pytest.raises(InputError, match="single run, which can't pause; allowed: action=cancel"):
        control(home, "run=wit/solo", "action=pause")


def answering(run_dir, done=True):
    """A driver that answers the first command; a thread."""

    def answer():
        driver = Commands(run_dir)
        while not (pending := driver.pending()):
            time.sleep(0.02)
        driver.answer(pending[0], done=done, text=f"{pending[0].action.value} carried out")
        seen.append(pending[0])

    seen = []
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return seen, thread


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["action=stop", "trial=t0001"], {"action": Action.stop, "trial": "t0001"}),
        (["action=stop", "quantile=0.5"], {"action": Action.stop, "quantile": 0.5}),
        (
            ["action=clone", "trial=t0003", "values.tuning.learning_rate_multiplier=0.1", "values.seed=7"],
            {"action": Action.clone, "trial": "t0003", "values": {RATE: 0.1, "seed": 7}},
        ),
        (
            ["action=extend", "space.tuning.adapter_size=[32,64]", "space.method.alpha={min: 0, max: 1}"],
            {"space": {"tuning": {"adapter_size": [32, 64]}, "method": {"alpha": {"min": 0, "max": 1}}}},
        ),
        (["action=pause"], {"action": Action.pause}),
        (["action=cancel"], {"action": Action.cancel}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_are_sent_and_their_answers_printed(home, capsys, overrides, expected):
    run_dir = write_sweep(home)
    seen, thread = answering(run_dir)
    assert control(home, "run=wit/r1", *overrides) == 0
    thread.join()
    assert {key: getattr(seen[0], key) for key in expected} == expected
    assert capsys.readouterr().out == f"{seen[0].action.value} carried out\n"


def test_a_refusal_and_a_silent_driver_are_no_success(home, capsys):
    run_dir = write_sweep(home)
    _, thread = answering(run_dir, done=False)
    assert control(home, "run=wit/r1", "action=resume") == 1
    thread.join()
    assert capsys.readouterr().out.startswith("refused: ")
    assert control(home, "run=wit/r1", "action=pause", "timeout_seconds=0") == 1
    assert "stays in effect" in capsys.readouterr().out
    assert [command.action for command in Commands(run_dir).pending()] == [Action.pause]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=wit/r2"], "run=wit/r2 is no run below .*; nearest: wit/r1"),
        (["run=wit"], "nearest: wit/r1"),
        (["run=wit/../x"], "run='../x' is not allowed"),
        (["run=wit/r1", "action=show", "trial=t0033"], "trial=t0033 is no trial of wit/r1; nearest: t0003"),
        (["run=wit/r1", "action=stop", "trial=t0002"], "t0002 has ended already: diverged"),
        (["run=wit/r1", "action=stop"], "one of trial=ID and quantile=NUMBER"),
        (["run=wit/r1", "action=clone", "trial=t9"], "trial=t9 is no trial"),
        (
            ["run=wit/r1", "action=clone", "trial=t0001", "values.tuning.learning_rate=1"],
            "unknown key: tuning.learning_rate; nearest valid: tuning.learning_rate_multiplier",
        ),
        (
            ["run=wit/r1", "action=clone", "trial=t0001", "values.evaluation.batch_size=1"],
            "allowed: seed and keys of tuning",
        ),
        (["run=wit/r1", "action=extend", "space.tuning.stepz=[5]"], "nearest valid: tuning.steps"),
        (["run=wit/r1", "action=extend", "space.tuning.steps={min: 5, max: 1}"], "min < max"),
        (["action=pause"], "run=None is not allowed; allowed: NAME/RUN"),
        (["run=wit/r1", "action=show"], "trial=None is not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_with_what_is_near(home, overrides, message):
    run_dir = write_sweep(home)
    with pytest.raises(InputError, match=message):
        control(home, *overrides)
    assert not Commands(run_dir).pending()


@pytest.mark.parametrize(
    ("changes", "action", "message"),
    [
        ({"state": State.ended}, "extend", "run=r1 sweep.extend=true and a larger sweep.space continues it"),
        ({"state": State.ended}, "stop", r"isn't running \(state: ended\): nothing to stop"),
        ({"state": State.failed}, "pause", "run=r1 resumes it"),
        ({"process": None, "updated": 5.0}, "pause", "its driver is dead; the same command with run=r1 resumes it"),
        ({"process": None, "updated": 5.0}, "cancel", "its driver is dead"),
        ({"state": State.comparing}, "stop", "its trials are over"),
    ],
)
def test_a_run_that_is_not_running_says_what_to_do(home, changes, action, message):
    write_sweep(home, **changes)
    with pytest.raises(InputError, match=message):
        control(home, "run=wit/r1", f"action={action}", "trial=t0001", "space.tuning.steps=[5]")


DRIVER = """
import sys, time
from raytune_llm.sweep.status import reporting
with reporting(sys.argv[1], command="train", name="wit", run="solo"):
    print("inside", flush=True)
    time.sleep(600)
"""


def test_a_train_run_of_this_machine_is_cancelled_by_its_process(tmp_path, capsys):
    run_dir = f"{tmp_path}/runs/wit/solo"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, run_dir], stdout=subprocess.PIPE, cwd=ROOT)
    driver.stdout.readline()
    assert control(tmp_path, "run=wit/solo", "action=cancel") == 0
    assert driver.wait(60) != 0
    assert "wit/solo is cancelled" in capsys.readouterr().out
    assert read_status(run_dir).state is State.cancelled


def test_a_process_elsewhere_or_of_another_time_is_left_alone(tmp_path):
    run_dir = f"{tmp_path}/runs/wit/solo"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, run_dir], stdout=subprocess.PIPE, cwd=ROOT)
    driver.stdout.readline()
    found = read_status(run_dir)
    driver.kill()
    driver.wait()
    for changes in ({"host": "another-machine"}, {"process": found.process + 1, "pid": 1}):
        write_status(run_dir, replace(found, updated=time.time(), **changes))
        with pytest.raises(InputError, match="cancel it there"):
            control(tmp_path, "run=wit/solo", "action=cancel")


def test_a_ray_job_is_stopped_by_its_job_server(tmp_path):
    run_dir = f"{tmp_path}/runs/wit/solo"
    with reporting(run_dir, command="train", name="wit", run="solo"):
        pass
    submitted = replace(read_status(run_dir), state=State.running, submission="raysubmit_1")
    write_status(run_dir, submitted)
    with pytest.raises(InputError, match="whose job server isn't known; give ray_address=http://HOST:8265"):
        control(tmp_path, "run=wit/solo", "action=cancel")
    write_status(run_dir, replace(submitted, job_server="http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"can't be reached.*ray_address=http://HOST:8265 names another"):
        control(tmp_path, "run=wit/solo", "action=cancel")
