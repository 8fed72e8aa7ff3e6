"""Packed sweeps whose actors lose their GPU, die or have no room, on real Ray."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from test_runner_packed import assert_alike, curves, job_of, outcomes_of
from worlds import write_base, write_records

from raytune_llm.sweep import runner_packed
from raytune_llm.training.objective import Report
from raytune_llm.training.packed.actor import PackActor

pytestmark = pytest.mark.usefixtures("ray_session")
SPEC = SimpleNamespace(trial=SimpleNamespace(id="t"))
FEW = [
    "sweep.space.tuning.steps=[6]",
    "sweep.space.tuning.adapter_size=[1,4]",
    "sweep.space.tuning.learning_rate_multiplier=[1.0]",
    "sweep/backend=packed",
    "scaling.max_failures=0",
]
CUDA_ERROR = "CUDA error: device-side assert triggered"


@pytest.fixture(scope="module", autouse=True)
def pickled_by_value():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_base(folder / "base", "llama"), *write_records(folder)


class LosesItsGPU(PackActor):
    """Its third step raises what torch raises after a failed kernel, in its first `most` lives."""

    lives: Path
    """A file with a line a life."""
    most: int

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        with self.lives.open("a") as file:
            file.write("life\n")
        life = len(self.lives.read_text().splitlines())
        original, steps = self.packed.pack.step, []

        def step():
            steps.append(1)
            if life <= self.most and len(steps) == 3:
                raise RuntimeError(CUDA_ERROR)
            return original()

        self.packed.pack.step = step


def losing(monkeypatch, lives, most):
    monkeypatch.setattr(runner_packed, "PackActor", type("Losing", (LosesItsGPU,), {"lives": lives, "most": most}))


def test_trials_rejoin_an_actor_that_lost_its_gpu(world, tmp_path, monkeypatch):
    expected = curves(outcomes_of(job_of(world, tmp_path / "undisturbed", *FEW)))
    losing(monkeypatch, tmp_path / "lives", most=2)
    found = outcomes_of(job_of(world, tmp_path / "lost", *FEW))
    assert {outcome.ended for outcome in found} == {"complete"}
    assert_alike(curves(found), expected)
    assert len((tmp_path / "lives").read_text().splitlines()) >= 3


def test_a_trial_whose_actors_die_again_and_again_fails_with_the_error(world, tmp_path, monkeypatch):
    """No life reaches the first report, of step 3."""
    losing(monkeypatch, tmp_path / "lives", most=1000)
    found = outcomes_of(job_of(world, tmp_path, *FEW, "sweep.space.tuning.adapter_size=[1]", "tuning.eval_every=3"))
    assert [outcome.ended.startswith("failed: ") and CUDA_ERROR in outcome.ended for outcome in found] == [True]
    assert len((tmp_path / "lives").read_text().splitlines()) <= 2 * (runner_packed.MOST_DEATHS + 1)


class Mortal:
    """As a pack actor: how many slots are free, what `next` answers in turn; an exception is raised."""

    def __init__(self, free, answers):
        self.free, self.answers, self.left = free, answers, 0

    def num_free(self):
        return self.free

    def join(self, spec):
        return self.free > 0

    def next(self, trial_id):
        answer = self.answers.pop(0)
        if answer == "exit":
            ray.actor.exit_actor()
        steps, ended = answer
        return [Report(step=step, metrics={}) for step in steps], ended

    def leave(self, trial_id):
        self.left += 1


def mortal(*arguments, **options):
    return ray.remote(num_cpus=0, **options)(Mortal).remote(*arguments)


def steps_of(actors):
    return [report.step for report in runner_packed.reports(SPEC, actors)]


def test_a_trial_joins_another_actor_when_its_own_stays_dead(monkeypatch):
    monkeypatch.setattr(runner_packed, "REJOIN_SECONDS", 0.01)
    dies, lives = mortal(2, [([1], None), "exit"]), mortal(1, [([1, 2], None), ([3], "complete")])
    assert steps_of([dies, lives]) == [1, 2, 3]


def test_without_any_actor_left_it_gives_up_in_time(monkeypatch):
    monkeypatch.setattr(runner_packed, "REJOIN_SECONDS", 0.01)
    monkeypatch.setattr(runner_packed, "GIVE_UP_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(ray.exceptions.RayActorError):
        steps_of([mortal(1, ["exit"]), mortal(0, [])][:1])
    assert 1.0 < time.monotonic() - started < 20


def test_a_trial_that_an_actor_fails_raises_why_and_leaves():
    actor = mortal(1, [([1], None), ([], "failed: out of memory when the trial joined 3 others")])
    with pytest.raises(RuntimeError, match="out of memory when the trial joined 3 others"):
        steps_of([actor])
    assert ray.get(actor.__ray_call__.remote(lambda one: one.left)) == 2


def test_deaths_count_until_there_is_a_new_report():
    deaths, error = runner_packed.Deaths(), ray.exceptions.RayActorError()
    for _ in range(2):
        for _ in range(runner_packed.MOST_DEATHS):
            deaths.is_joined = True
            deaths.count(error)
            deaths.count(error)  # it isn't back yet
        deaths.clear()
    for _ in range(runner_packed.MOST_DEATHS):
        deaths.is_joined = True
        deaths.count(error)
    deaths.is_joined = True
    with pytest.raises(ray.exceptions.RayActorError):
        deaths.count(error)
