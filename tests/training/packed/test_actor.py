"""A pack actor in this process: what its callers see while reports are stored, when storing fails, when the GPU is
lost."""

import subprocess
import sys
import threading
import time

import pytest
import ray
import torch
from worlds import precomputed, spec_of, write_base, write_records

from raytune_llm.jobs.config import load
from raytune_llm.training import checkpoints
from raytune_llm.training.history import read_reports
from raytune_llm.training.packed import actor as actor_module
from raytune_llm.training.packed.actor import DeviceLostError, PackActor
from raytune_llm.training.packed.pending_report import PendingReport

pytestmark = pytest.mark.usefixtures("ray_session")
EVERY, STEPS = 3, 12


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    base, (train, evaluation) = write_base(folder / "base", "llama"), write_records(folder)
    paths = [f"model.name_or_path={base}", f"data.train={train}", f"data.eval={evaluation}", "run=r", "name=t"]
    knobs = [f"tuning.eval_every={EVERY}", f"tuning.steps={STEPS}", "tuning.batch_size=4", "tuning.adapter_size=4"]
    return lambda home: load("train", [*paths, *knobs, "tuning.early_stopping.patience=null", f"home={home}"])


@pytest.fixture(scope="module")
def examples(job):
    return ray.cloudpickle.dumps(ray.put(precomputed(job("unused")).examples))


@pytest.fixture
def world(job, examples, tmp_path):
    """An actor with room for two, and the specs of trials a and b."""
    chosen = job(tmp_path)
    actor = PackActor(
        chosen.trial_config(),
        examples,
        "group",
        wanted=2,
        max_lora_rank=4,
        threads=1,
        use_gpu=False,
        compile=None,
        logs_plan=False,
        num_sharing=1,
        start_together=False,
    )
    yield actor, {id: spec_of(chosen, id=id) for id in "ab"}
    actor.stop()


def all_reports(actor, trial_id):
    """To the trial's end; each must be in the checkpoint when it arrives."""
    found, ended = [], None
    while ended is None:
        new, ended = actor.next(trial_id)
        found += new
    return found, ended


class Gate:
    """Lets `publish` through when it is opened."""

    def __init__(self, monkeypatch):
        self.entered, self.opened = threading.Event(), threading.Event()
        original = PendingReport.publish

        def publish(pending):
            self.entered.set()
            assert self.opened.wait(30)
            original(pending)

        monkeypatch.setattr(PendingReport, "publish", publish)


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_report_arrives_once_its_checkpoint_is_whole(world):
    actor, specs = world
    assert actor.join(specs["a"])
    ended = None
    steps = []
    while ended is None:
        new, ended = actor.next("a")
        steps += [report.step for report in new]
        if new:
            assert read_reports(checkpoints.latest(specs["a"].directory))[: len(steps)][-1].step == steps[-1]
    assert steps == [3, 6, 9, 12] and ended == "complete" and actor.num_free() == 2


def test_training_continues_while_a_report_is_stored_up_to_the_next_one(world, monkeypatch):
    actor, specs = world
    gate = Gate(monkeypatch)
    monkeypatch.setattr(actor_module, "WAIT_SECONDS", 0.2)
    actor.join(specs["a"])
    assert gate.entered.wait(30)
    until(lambda: actor.packed.pack.steps_done("a") == 2 * EVERY - 1)
    assert actor.next("a") == ([], None) == actor.next("a"), "asking doesn't accept what nobody has seen"
    time.sleep(0.2)
    assert actor.packed.pack.steps_done("a") == 2 * EVERY - 1
    assert checkpoints.latest(specs["a"].directory) is None
    gate.opened.set()
    found, ended = all_reports(actor, "a")
    assert [report.step for report in found] == [3, 6, 9, 12] and ended == "complete"


def test_a_hastened_trial_waits_for_no_others_to_start_with(world, monkeypatch):
    monkeypatch.setattr(actor_module, "GATHER_SECONDS", 1000.0)
    actor, specs = world
    actor.num_starting = 2
    actor.join(specs["a"])
    until(lambda: "a" in actor.packed.trials)
    time.sleep(0.2)
    assert actor.packed.pack.steps_done("a") == 0
    actor.hasten(["a"])
    new, _ = actor.next("a")
    assert [report.step for report in new] == [1]


def test_leaving_returns_when_the_trial_is_stored_and_nothing_touches_it_afterwards(world, monkeypatch):
    actor, specs = world
    gate = Gate(monkeypatch)
    actor.join(specs["a"])
    assert gate.entered.wait(30)
    leaving = threading.Thread(target=actor.leave, args=["a"])
    leaving.start()
    leaving.join(0.1)
    assert leaving.is_alive()
    gate.opened.set()
    leaving.join(30)
    assert not leaving.is_alive()
    with checkpoints.open_state(checkpoints.latest(specs["a"].directory)) as folder:
        assert folder is not None
    before = checkpoints.latest(specs["a"].directory)
    time.sleep(0.3)
    assert checkpoints.latest(specs["a"].directory) == before
    actor.join(specs["a"])
    found, _ = all_reports(actor, "a")
    assert [report.step for report in found] == [3, 6, 9, 12]


def test_a_full_disk_reaches_every_caller(world, monkeypatch):
    actor, specs = world

    def full(pending):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PendingReport, "publish", full)
    for spec in specs.values():
        actor.join(spec)
    for trial_id in specs:
        with pytest.raises(RuntimeError, match=r"packed training failed: .*No space left on device") as caught:
            all_reports(actor, trial_id)
        assert not isinstance(caught.value, DeviceLostError)
    actor.thread.join(30)
    assert not actor.thread.is_alive(), "training has ended"


def test_a_trial_without_memory_ends_alone(world, monkeypatch):
    actor, specs = world
    actor.join(specs["a"])
    original = actor.packed.pack.join

    def short_of_memory(settings, *arguments, **options):
        if settings.trial_id == "b":
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(settings, *arguments, **options)

    monkeypatch.setattr(actor.packed.pack, "join", short_of_memory)
    actor.join(specs["b"])
    found, ended = all_reports(actor, "b")
    assert found == [] and ended.startswith("failed: out of memory")
    assert all_reports(actor, "a")[1] == "complete" and actor.num_free() == 2


def test_a_lost_gpu_is_named_and_ends_the_process():
    """In a process of its own: the error reaches the waiting caller, then the process exits."""
    code = """
import sys, threading, time
from raytune_llm.training.packed import actor
actor.EXIT_SECONDS = 0.5
pack = object.__new__(actor.PackActor)
pack.changed, pack.failure, pack.is_lost = threading.Condition(), None, False
thread = threading.Thread(target=pack._fail, args=[RuntimeError("CUDA error: unspecified launch failure")])
thread.start()
while True:
    with pack.changed:
        try:
            pack._check()
        except actor.DeviceLostError as error:
            print(error, flush=True)
            time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == "packed training failed: CUDA error: unspecified launch failure\n"
    assert "unspecified launch failure" in done.stderr
