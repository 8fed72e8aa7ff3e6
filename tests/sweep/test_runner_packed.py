"""Packed sweeps on real Ray: the same results as trials by themselves, also when what carries them dies."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from worlds import write_base, write_records

from raytune_llm import cluster
from raytune_llm.errors import InputError
from raytune_llm.evaluation.terms import Better
from raytune_llm.jobs import commands
from raytune_llm.jobs.config import load
from raytune_llm.jobs.prepare import check_sweep, prepare
from raytune_llm.models.base import Base
from raytune_llm.sweep import leaderboard, runner_packed, tuner
from raytune_llm.sweep.phases import Phase
from raytune_llm.sweep.plan import make_plan
from raytune_llm.sweep.runner_packed import packs_on_a_node
from raytune_llm.sweep.schedulers import batched
from raytune_llm.training.objective import Report

pytestmark = pytest.mark.usefixtures("ray_session")
SPACE = [
    "sweep.space.tuning.steps=[4,8]",
    "sweep.space.tuning.adapter_size=[1,4]",
    "sweep.space.tuning.learning_rate_multiplier=[0.3,1.0]",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", "llama"), *write_records(folder)


def job_of(world, home, *overrides):
    base, train, evaluation = world
    return load(
        "sweep",
        [
            *(f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", f"home={home}", "run=r"),
            *("tuning.eval_every=2", "tuning.batch_size=4", "tuning.warmup_steps=2", "sweep/scheduler=none", *SPACE),
            *("tuning.early_stopping.patience=null", "evaluation.max_new_tokens=4", *overrides),
        ],
    )


def outcomes_of(job):
    planned = make_plan(job.trial_config(), job.sweep.axes())
    check_sweep(job, planned)
    prepared = prepare(job)
    phase = Phase(config=job.trial_config(prepared.better), examples=ray.put(prepared.examples))
    return tuner.run(job.sweep, [phase], use_gpu=False, interactive=False).outcomes


def curves(outcomes):
    """(size, multiplier) → [(step, eval loss), …]."""
    return {
        tuple(sorted(outcome.trial.values.items())): [(r.step, r.metrics["eval/loss"]) for r in outcome.reports]
        for outcome in outcomes
    }


def assert_alike(found, expected, rel=1e-4):
    assert found.keys() == expected.keys()
    for key, curve in expected.items():
        assert [step for step, _ in found[key]] == [step for step, _ in curve]
        assert [loss for _, loss in found[key]] == pytest.approx([loss for _, loss in curve], rel=rel)


@pytest.fixture(scope="module")
def undisturbed(ray_session, world, tmp_path_factory):
    return curves(outcomes_of(job_of(world, tmp_path_factory.mktemp("packed"), "sweep/backend=packed")))


def test_packed_trials_have_the_curves_of_trials_by_themselves(world, undisturbed, tmp_path):
    alone = outcomes_of(job_of(world, tmp_path, "sweep/backend=ray_train"))
    assert all(outcome.ended == "complete" for outcome in alone)
    assert [step for step, _ in next(iter(undisturbed.values()))] == [2, 4, 6, 8]
    assert_alike(undisturbed, curves(alone))


def test_fewer_slots_than_trials_change_nothing(world, undisturbed, tmp_path):
    found = outcomes_of(job_of(world, tmp_path, "sweep/backend=packed", "sweep.backend.slots=1"))
    assert_alike(curves(found), undisturbed)


def kill_when_reported(home: Path, process, reported: int) -> threading.Thread:
    """Once so many trials have a checkpoint, SIGKILL what `process()` finds."""

    def watch():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if len(list(home.glob("runs/*/r/trials/*/checkpoint_*/history.json"))) >= reported:
                os.kill(process(), signal.SIGKILL)
                killed.append(True)
                return
            time.sleep(0.01)

    killed = []
    thread = threading.Thread(target=watch)
    thread.killed = killed
    thread.start()
    return thread


def test_a_killed_pack_actor_is_rebuilt_and_its_trials_continue(world, undisturbed, tmp_path, monkeypatch):
    runners = []
    original = runner_packed.PackedRunner.__init__

    def remembered(self, *arguments, **options):
        original(self, *arguments, **options)
        runners.append(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in self.actors]))

    monkeypatch.setattr(runner_packed.PackedRunner, "__init__", remembered)
    watcher = kill_when_reported(tmp_path, lambda: runners[0][0], reported=1)
    found = outcomes_of(job_of(world, tmp_path, "sweep/backend=packed"))
    watcher.join()
    assert watcher.killed
    assert_alike(curves(found), undisturbed)


def test_a_killed_proxy_is_retried(world, undisturbed, tmp_path):
    def a_proxy():
        while True:
            for process in psutil.Process().children(recursive=True) + list(psutil.process_iter()):
                try:
                    if "ImplicitFunc" in " ".join(process.cmdline()) or "ray::proxy" in " ".join(process.cmdline()):
                        return process.pid
                except psutil.Error:
                    continue

    watcher = kill_when_reported(tmp_path, a_proxy, reported=1)
    found = outcomes_of(job_of(world, tmp_path, "sweep/backend=packed"))
    watcher.join()
    assert watcher.killed
    assert_alike(curves(found), undisturbed)


class Crowd:
    """As a pack actor: how many slots are free at each request, and the reports it has for whoever joins."""

    def __init__(self, free, steps, ended):
        self.free, self.ended = free, ended
        self.steps = steps
        self.joined = False

    def num_free(self):
        return self.free.pop(0)

    def join(self, spec):
        self.joined = True
        return True

    def next(self, trial_id):
        assert self.joined
        return [Report(step=step, metrics={}) for step in self.steps], self.ended

    def leave(self, trial_id):
        self.joined = False


def crowd(*arguments):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray.remote(num_cpus=0)(Crowd).remote(*arguments)


def test_a_trial_moves_from_a_crowded_actor_to_an_emptier_one_and_repeats_no_report():
    crowded, empty = crowd([4, 1, 2], [1], None), crowd([3, 3, 3], [1, 2], "complete")
    spec = SimpleNamespace(trial=SimpleNamespace(id="t"))
    assert [report.step for report in runner_packed.reports(spec, [crowded, empty])] == [1, 2]
    assert not ray.get(crowded.__ray_call__.remote(lambda actor: actor.joined))


def test_one_trial_more_than_elsewhere_is_no_crowd():
    first, second = crowd([2], [], None), crowd([3], [], None)
    assert not runner_packed.is_crowded(first, [first, second])


SCHEDULERS = {
    "asha": ["sweep/scheduler=asha", "sweep.scheduler.grace_steps=2"],
    "hyperband": ["sweep/scheduler=hyperband", "sweep.scheduler.reduction_factor=2"],
    "median": ["sweep/scheduler=median", "sweep.scheduler.grace_steps=2", "sweep.scheduler.min_trials=1"],
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_stop_or_pause_packed_trials_and_their_curves_are_prefixes(world, undisturbed, tmp_path, scheduler):
    """One slot an actor, so that trials wait for one another."""
    slots = ["sweep/backend=packed", "sweep.backend.slots=1"]
    found = outcomes_of(job_of(world, tmp_path, *slots, *SCHEDULERS[scheduler]))
    assert {outcome.ended for outcome in found} <= {"scheduler", "complete"}
    assert "complete" in {outcome.ended for outcome in found}
    assert curves(found).keys() == undisturbed.keys()
    for key, curve in curves(found).items():
        expected = undisturbed[key][: len(curve)]
        assert [step for step, _ in curve] == [step for step, _ in expected]
        assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in expected], rel=1e-4)


def test_asha_judges_the_trials_of_a_pack_as_if_it_knew_them_all(world, undisturbed, tmp_path, monkeypatch):
    """Four trials begin together in one pack and report together: the best two continue, whoever reported first."""
    monkeypatch.setattr(batched, "SHARE", 1.0)  # so that a busy machine delivers all reports in time
    one_pack = ["sweep/backend=packed", "sweep.backend.slots=4", "scaling.cpus_per_worker=2"]
    asha = ["sweep/scheduler=asha", "sweep.scheduler.grace_steps=4", "sweep.scheduler.reduction_factor=2"]
    found = curves(outcomes_of(job_of(world, tmp_path, *one_pack, *asha)))
    at_rung = {key: dict(curve)[4] for key, curve in undisturbed.items()}
    continued = {key for key, curve in found.items() if len(curve) > 2}
    assert continued == set(sorted(at_rung, key=at_rung.get)[:2])


def test_auto_says_why_it_does_not_pack(world, tmp_path, capsys):
    job = job_of(world, tmp_path, "adapter.dora=true", "sweep.space.tuning.learning_rate_multiplier=[1.0]")
    assert all(outcome.ended == "complete" for outcome in outcomes_of(job))
    assert "not packed: use_dora=True is not plain LoRA" in capsys.readouterr().out


def test_packed_refuses_what_it_cannot_take_before_anything_starts(world, tmp_path):
    job = job_of(world, tmp_path, "sweep/backend=packed", "adapter=full")
    with pytest.raises(InputError, match="full tuning changes the base itself"):
        check_sweep(job, make_plan(job.trial_config(), job.sweep.axes()))


class Crowded(Base):
    """A base that finds no room."""

    def load(self, **options):
        raise InputError("it doesn't fit")


def test_what_the_actors_refuse_ends_the_sweep_in_one_line(world, tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    job = job_of(world, tmp_path, "sweep/backend=packed")
    model = Crowded(**{field.name: getattr(job.model, field.name) for field in dataclasses.fields(Base)})
    with pytest.raises(InputError) as error:
        outcomes_of(dataclasses.replace(job, model=model))
    assert str(error.value) == "it doesn't fit"
    wait_until_free(ray.cluster_resources()["CPU"])  # though the error, which names the actors, is still there


def wait_until_free(cpus):
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < cpus:
        assert time.monotonic() < end, "actors of a sweep that has ended hold CPUs"
        time.sleep(0.1)


def test_the_packed_winner_is_published_with_its_own_settings(world, tmp_path):
    conclusion = commands.run_sweep(job_of(world, tmp_path, "sweep/backend=packed", "promote=never", "name=wit"))
    card = conclusion.version.card
    job = job_of(world, tmp_path, "sweep/backend=packed", "name=wit")
    planned = make_plan(job.trial_config(), job.sweep.axes())
    rows = leaderboard.leaderboard(outcomes_of(job), planned, job.trial_config(Better.lower).objective)
    assert rows[0].values["tuning.adapter_size"] == card.config["tuning"]["adapter_size"]
    assert card.metrics["eval/loss"] == pytest.approx(rows[0].best.metrics["eval/loss"], rel=1e-4)


def test_a_proxy_costs_no_torch(world, tmp_path):
    """Sixteen proxies on a small machine would otherwise import it sixteen times."""
    config = job_of(world, tmp_path).trial_config()
    (tmp_path / "config").write_bytes(ray.cloudpickle.dumps(config))
    code = (
        "import sys, pickle; import raytune_llm.training.config, raytune_llm.sweep.runner_packed; "
        "pickle.load(open(sys.argv[1], 'rb')); "
        "heavy = {'torch', 'transformers', 'peft', 'trl'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "config")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("num_actors", "cpus", "sharing"), [(1, 1, 1), (2, 1, 2), (9, 1, 4), (9, 2, 2), (2, 8, 1)])
def test_packs_share_the_memory_of_a_node(num_actors, cpus, sharing, monkeypatch):
    monkeypatch.setattr(cluster, "largest_node", lambda: 4.0)
    assert packs_on_a_node(num_actors, cpus) == sharing
