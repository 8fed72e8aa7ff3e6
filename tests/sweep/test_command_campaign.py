"""The driver of a packed sweep is killed at ten random moments while commands wait, and started again each time with
the same command: no command is lost, and none is carried out twice.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from worlds import write_base, write_records

from raytune_llm.sweep.control import Action, Commands
from raytune_llm.sweep.trial_store import Origin, TrialStore
from raytune_llm.training import checkpoints

pytestmark = pytest.mark.slow  # eleven starts of a sweep, each in a Ray session of its own

KILLS = 10
START_SECONDS = 600
RATE = "tuning.learning_rate_multiplier"
SPACE = ("sweep.space.tuning.steps=[600]", "sweep.space.tuning.adapter_size=[2]", f"sweep.space.{RATE}=[1.0,3.0]")
KNOBS = (
    "tuning.batch_size=4",
    "tuning.eval_every=25",
    "tuning.early_stopping.patience=null",
    "model.learning_rate=1e-3",
)
CHOICES = ("sweep/backend=packed", "sweep/scheduler=none", "sweep/search=grid")


@pytest.fixture
def world(tmp_path):
    write_base(tmp_path / "base", "llama")
    write_records(tmp_path / "data", count=40)
    return tmp_path


def start(world):
    """The sweep's command, always the same."""
    data = (f"data.train={world}/data/train.jsonl", f"data.eval={world}/data/eval.jsonl")
    own = (f"home={world}/home", "name=wit", "run=r", f"model.name_or_path={world}/base", *data)
    command = [sys.executable, "-m", "raytune_llm.cli", "sweep", *own, *SPACE, *KNOBS, *CHOICES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Path(world, "log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def last_step(run_dir, id):
    newest = checkpoints.latest(f"{run_dir}/trials/{id}")
    return 0 if newest is None else int(newest.rpartition("_")[2])


def start_until_steps(world, run_dir):
    """The driver, when a trial has reported anew; a machine that is too busy to start Ray is asked again."""
    before = {id: last_step(run_dir, id) for id in TrialStore.read(run_dir).records}
    process, deadline = start(world), time.monotonic() + START_SECONDS
    while not any(last_step(run_dir, id) > before.get(id, 0) for id in TrialStore.read(run_dir).records):
        assert time.monotonic() < deadline
        if process.poll() is not None:
            output = Path(world, "log").read_text()
            assert "timed out during startup" in output, output
            process = start(world)
        time.sleep(0.05)
    return process


def give(commands, run_dir, chance, numbers):
    """A random command that changes something; each clone and extension has a rate of its own."""
    store = TrialStore.read(run_dir)
    parents = [id for id in store.records if last_step(run_dir, id)]
    running = [id for id in parents if id not in store.endings]
    match chance.choice(["clone", "clone", "extend", "stop", "pause"]):
        case "clone":
            commands.send(Action.clone, trial=chance.choice(parents), values={RATE: 1 + next(numbers) / 1000})
        case "extend":
            commands.send(Action.extend, space={"tuning": {"learning_rate_multiplier": [2 + next(numbers) / 1000]}})
        case "stop" if len(running) > 1:
            commands.send(Action.stop, trial=chance.choice(running))
        case _:
            commands.send(Action.pause)
            time.sleep(chance.uniform(0, 0.5))
            commands.send(Action.resume)


def test_no_command_is_lost_or_carried_out_twice(world):
    run_dir, chance, numbers = f"{world}/home/runs/wit/r", random.Random(0), itertools.count(1)
    commands = Commands(run_dir)
    for _ in range(KILLS):
        process = start_until_steps(world, run_dir)
        for _ in range(chance.randint(1, 3)):
            give(commands, run_dir, chance, numbers)
            time.sleep(chance.choice([0.0, 0.3]))
        time.sleep(chance.uniform(0, 1.5))
        assert process.poll() is None, "the sweep has ended before its driver was killed"
        process.kill()
        process.wait()
    assert start_until_steps(world, run_dir).wait() == 0, Path(world, "log").read_text()
    check(run_dir)


def check(run_dir):
    """What became of each command."""
    given = [json.loads(file.read_text()) for file in sorted(Path(run_dir, "control/commands").glob("*.json"))]
    answers = {file.stem: json.loads(file.read_text()) for file in Path(run_dir, "control/answers").glob("*.json")}
    assert {command["id"] for command in given} == answers.keys(), "a command has no answer"
    assert all(answer["done"] for answer in answers.values()), answers
    store = TrialStore.read(run_dir)
    assert store.records.keys() == store.endings.keys()
    of = {
        action: [command for command in given if command["action"] == action] for action in ("clone", "extend", "stop")
    }
    clones = Counter(record.command for record in store.records.values() if record.origin is Origin.clone)
    assert clones == Counter(command["id"] for command in of["clone"]), "a clone is missing, or was made twice"
    for record in store.records.values():
        if record.origin is Origin.clone:
            (command,) = [command for command in of["clone"] if command["id"] == record.command]
            assert record.parent == command["trial"] and record.values[RATE] == command["values"][RATE]
    found = Counter(record.values[RATE] for record in store.records.values() if record.origin is Origin.search)
    asked = [command["space"]["tuning"]["learning_rate_multiplier"][0] for command in of["extend"]]
    assert found == Counter([1.0, 3.0, *asked]), "a point of the space is missing, or was tried twice"
    for command in of["stop"]:
        ending = store.endings[command["trial"]]
        late = "ended already" in answers[command["id"]]["text"]
        assert ending.why == "stopped" or late, f"{command['trial']} was to stop, and ended as {ending.why}"
    assert not Path(run_dir, "control/paused").exists()
