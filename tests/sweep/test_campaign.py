"""Ten seeds of each disaster: a pack actor, a proxy or the driver of a packed sweep is killed at a random moment.

The driver is a process of its own, this file run as a script; it is started again with the same command until it ends
by itself.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from worlds import write_base, write_records

pytestmark = pytest.mark.slow  # sixty sweeps, each in a Ray session of its own

SEEDS = range(10)
MARK = "RAYTUNE_LLM_CAMPAIGN"
VICTIMS = {"actor": "ray::PackActor", "proxy": "ray::ImplicitFunc", "driver": __file__}
SPACE = ("sweep.space.tuning.steps=[60]", "sweep.space.tuning.adapter_size=[1,2,4]")
RATES = "sweep.space.tuning.learning_rate_multiplier=[0.3,3.0]"
ASHA = ("sweep/scheduler=asha", "sweep.scheduler.grace_steps=5", "sweep.scheduler.reduction_factor=2")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base", "llama")
    write_records(folder / "data", count=40)
    return folder


def start(world, home, *overrides):
    command = [sys.executable, __file__, str(world), str(home), *overrides]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), MARK: str(home)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def result_of(home):
    """By values: a trial's id, its curve, how it ended, where its checkpoint is."""
    trials = json.loads((home / "outcomes.json").read_text())
    return {json.dumps(trial["values"], sort_keys=True): trial for trial in trials}


def members(home):
    """Processes of the sweep in `home`."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(home):
                yield process
        except psutil.Error:
            continue


def kill_one(victim, home, chance, process):
    """SIGKILL one of its kind, chosen by chance. Returns whether there was one left to kill."""
    if victim == "driver":
        process.kill()
        return True
    found = []
    for member in members(home):
        try:
            if VICTIMS[victim] in " ".join(member.cmdline()):
                found.append(member)
        except psutil.Error:
            continue
    if not found or process.poll() is not None:
        return False
    chance.choice(sorted(found, key=lambda member: member.pid)).kill()
    return True


def num_steps(home):
    """Steps that the trials whose checkpoints are kept have made together."""
    last = {}
    for checkpoint in home.glob("runs/*/r/trials/*/checkpoint_*"):
        last[checkpoint.parent] = max(last.get(checkpoint.parent, 0), int(checkpoint.name.rpartition("_")[2]))
    return sum(last.values())


def disturbed(world, home, victim, seed, most_steps, *overrides):
    """Run a sweep whose victim dies at a random moment, about when its trials have made up to so many steps."""
    chance = random.Random(seed)
    process = start(world, home, *overrides)
    moment = chance.randint(1, most_steps)
    while num_steps(home) < moment and process.poll() is None:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))
    killed = kill_one(victim, home, chance, process)
    if victim == "driver":
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        finish(start(world, home, *overrides))
    else:
        finish(process)
    assert killed, "the sweep ended before its victim was killed"
    return result_of(home)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    finish(start(world, home, "sweep/scheduler=none"))
    return result_of(home)


def weights(trial):
    return load_file(Path(trial["checkpoint"]) / "best" / "adapter_model.safetensors")


def steps(trial):
    return [step for step, _ in trial["curve"]]


def losses(trial):
    return [loss for _, loss in trial["curve"]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_grid_comes_to_the_same(world, undisturbed, tmp_path, victim, seed):
    expected = undisturbed
    found = disturbed(world, tmp_path, victim, seed, 240, "sweep/scheduler=none")
    assert {key: trial["id"] for key, trial in found.items()} == {key: trial["id"] for key, trial in expected.items()}
    for key, trial in found.items():
        assert steps(trial) == steps(expected[key]) and trial["ended"] == "complete"
        assert losses(trial) == pytest.approx(losses(expected[key]), rel=1e-4)
    best = min(expected, key=lambda key: min(losses(expected[key])))
    assert_close(weights(found[best]), weights(expected[best]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_under_asha_no_report_is_lost_and_every_curve_is_a_prefix(world, undisturbed, tmp_path, victim, seed):
    expected = undisturbed
    found = disturbed(world, tmp_path, victim, seed, 30, *ASHA)
    assert found.keys() == expected.keys()
    for key, trial in found.items():
        assert steps(trial) == steps(expected[key])[: len(steps(trial))]
        assert losses(trial) == pytest.approx(losses(expected[key])[: len(steps(trial))], rel=1e-4)
        assert trial["ended"] in ("complete", "scheduler")
    recorded = json.loads((tmp_path / "rungs.json").read_text())
    first = {trial["id"]: losses(trial)[0] for trial in found.values()}
    assert recorded == pytest.approx(first, rel=1e-6), "the first rung doesn't hold every trial's report"
    best = min(found, key=lambda key: min(losses(found[key])))
    if steps(found[best]) == steps(expected[best]):
        assert_close(weights(found[best]), weights(expected[best]), rtol=1e-3, atol=1e-4)


def drive(world, home, *overrides):
    """The sweep itself; leaves its outcomes and, under ASHA, what its first rung holds."""
    import ray

    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.stages import prepare_job
    from raytune_llm.sweep import tuner
    from raytune_llm.sweep.phases import Phase
    from raytune_llm.sweep.schedulers import replay

    schedulers = []
    original = replay.ReplayingScheduler.on_trial_add

    def remembered(self, *arguments):
        schedulers.append(self.scheduler)
        original(self, *arguments)

    replay.ReplayingScheduler.on_trial_add = remembered
    paths = [f"model.name_or_path={world}/base", f"data.train={world}/data/train.jsonl", f"home={home}", "run=r"]
    knobs = ["tuning.batch_size=4", "tuning.eval_every=5", "tuning.early_stopping.patience=null", "name=swept"]
    data = [f"data.eval={world}/data/eval.jsonl", "model.learning_rate=1e-2", "sweep/backend=packed"]
    job = load("sweep", [*paths, *knobs, *data, *SPACE, RATES, *overrides])
    started = prepare_job(job)
    phase = Phase(config=job.trial_config(started.prepared.better), examples=ray.put(started.prepared.examples))
    outcomes = tuner.run(job.sweep, [phase], use_gpu=started.use_gpu, interactive=False).outcomes
    if any("asha" in override for override in overrides):
        _, recorded = schedulers[-1]._brackets[0]._rungs[-1]
        Path(home, "rungs.json").write_text(json.dumps({id: -value for id, value in recorded.items()}))
    Path(home, "outcomes.json").write_text(
        json.dumps(
            [
                {
                    "id": outcome.trial.id,
                    "values": outcome.trial.values,
                    "curve": [(report.step, report.metrics["eval/loss"]) for report in outcome.reports],
                    "ended": outcome.ended,
                    "checkpoint": outcome.checkpoint,
                }
                for outcome in outcomes
            ]
        )
    )


if __name__ == "__main__":
    drive(*sys.argv[1:])
