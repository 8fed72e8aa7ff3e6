"""Sweeps that are steered: what stops, what starts, what is left to another start."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raytune_llm.sweep import judge, tuner
from raytune_llm.sweep.budget import Budget
from raytune_llm.sweep.commands import CommandDesk, extensions, forget_cancel, is_cancelled, is_paused
from raytune_llm.sweep.control import Action, Commands
from raytune_llm.sweep.phases import Phase
from raytune_llm.sweep.plan import make_plan
from raytune_llm.sweep.queue import Proposals, TrialQueue
from raytune_llm.sweep.search.grid import Grid
from raytune_llm.sweep.space import axes_of
from raytune_llm.sweep.spending import Prices, Spending
from raytune_llm.sweep.steering import FIRST_REPORT_SECONDS, Drain, SteeredScheduler, Steering
from raytune_llm.sweep.trial_store import Ending, Origin, TrialStore
from raytune_llm.training.objective import Objective

SPACE = {"tuning": {"steps": [10, 20], "adapter_size": [4, 8], "learning_rate_multiplier": [1.0, 3.0]}}
NONE = {"hours": None, "gpu_hours": None, "usd": None, "tokens": None, "trials": None}
LOSS = Objective("eval/loss", lower_is_better=True)


@dataclass(eq=False)
class FakeTrial:
    """As much of a trial of Ray Tune as is looked at."""

    trial_id: str
    status: str = Trial.PENDING


@dataclass
class Runner:
    hastened: list = field(default_factory=list)
    fitting: bool = True
    hastens: bool = True

    def hasten(self, ids):
        self.hastened.append(sorted(ids))

    def fits(self, plan):
        return self.fitting


class World:
    """A sweep without processes: its own clock, trials that report when the test says so."""

    def __init__(self, run_config, run_dir, most=None, warm=(), **limits):
        self.now, self.run_dir = 0.0, run_dir
        self.store = TrialStore.read(run_dir)
        axes = dict(axes_of(SPACE))
        proposals = Proposals(
            store=self.store, plan=make_plan(run_config, axes), search=Grid(), seed=0, objective=LOSS,
            own_batch_size=4, base=None, first=(), warm=warm, most=most,
        )  # fmt: skip
        self.queue = TrialQueue(proposals, proposals.unfinished(), most_live=2, ended=self.ended)
        self.queue.trial_of = lambda record: FakeTrial(record.id)
        prices = Prices(num_gpus=0, num_nodes=1, usd_per_hour=None, tokens_per_example=1.0, reserve_seconds=0.0)
        spending = Spending(run_dir, Budget(**NONE | limits), prices)
        spending.start(0.0, began=0.0)
        self.runner, self.commands = Runner(), Commands(run_dir)
        self.desk = CommandDesk(self.commands, run_config, self.queue, axes, self.runner.fits)
        self.steering = Steering(self.queue, self.runner, self.desk, spending, clock=lambda: self.now)
        self.scheduler = SteeredScheduler(FIFOScheduler(), self.steering)

    def ended(self, id, result, failed):
        if self.steering.drain is None:
            self.store.end(id, Ending(why="complete", checkpoint=None))

    # as a controller of Ray Tune

    def get_live_trials(self):
        return set(self.queue.live.values())

    def get_trials(self):
        return []

    def stop_trial(self, trial):
        trial.status = Trial.TERMINATED
        self.queue.on_trial_complete(trial.trial_id)

    def start(self):
        """Start what may run."""
        while (trial := self.queue.next_trial()) is not None:
            trial.status = Trial.RUNNING

    def turn(self, seconds=5.0):
        self.now += seconds
        self.scheduler.choose_trial_to_run(self)

    def report(self, id, step, loss=1.0):
        """Whether the trial continues."""
        trial = self.queue.live[id]
        decision = self.scheduler.on_trial_result(self, trial, {"step": step, "eval/loss": loss})
        if decision == TrialScheduler.STOP:
            self.stop_trial(trial)
        return decision == TrialScheduler.CONTINUE

    def answers(self):
        return [
            self.commands._storage.read(f"answers/{name}").decode() for name in self.commands._storage.files("answers")
        ]


@pytest.fixture
def run_config(tmp_path):
    from raytune_llm.jobs.config import load

    return load("sweep", ["model=demo", "data=demo_sarcasm", f"home={tmp_path}", "run=r"]).trial_config()


@pytest.fixture
def world(run_config):
    return World(run_config, run_config.run_dir)


def test_trials_come_one_after_another_and_each_once(world):
    world.start()
    assert list(world.queue.live) == ["t0001", "t0002"] and world.queue.next_trial() is None
    for _ in range(4):
        world.stop_trial(next(iter(world.queue.live.values())))
        world.start()
    assert len(world.store.records) == 4 and world.queue.is_finished()
    assert len({tuple(record.values.items()) for record in world.store.records.values()}) == 4


def test_another_start_takes_the_unfinished_first(world, run_config):
    world.start()
    world.stop_trial(world.queue.live["t0001"])
    again = World(run_config, run_config.run_dir)
    again.start()
    assert list(again.queue.live) == ["t0002", "t0003"]


def test_winners_of_earlier_sweeps_come_first_and_once_also_when_others_have_won_meanwhile(run_config):
    best, other = ({"tuning.learning_rate_multiplier": rate, "tuning.adapter_size": 8} for rate in (3.0, 1.0))
    world = World(run_config, run_config.run_dir, warm=[best])
    world.start()
    assert next(iter(world.store.records.values())).origin is Origin.warm_start
    again = World(run_config, run_config.run_dir, warm=[other, best])
    while again.queue.live or not again.queue.is_finished():
        again.start()
        again.stop_trial(next(iter(again.queue.live.values())))
        again.queue.next_trial()
    values = [tuple(sorted(record.values.items())) for record in again.store.records.values()]
    assert len(values) == len(set(values)) == 4


def test_a_command_stops_a_trial_at_its_next_report(world):
    world.start()
    world.commands.send(Action.stop, trial="t0001")
    world.turn()
    assert world.runner.hastened == [["t0001"]]
    assert world.report("t0002", 5) and not world.report("t0001", 5)
    assert '"done":true' in world.answers()[0].replace(" ", "")


def test_a_trial_that_is_to_stop_does_so_in_another_start(world, run_config):
    world.start()
    world.commands.send(Action.stop, trial="t0001")
    world.turn()
    again = World(run_config, run_config.run_dir)
    again.start()
    again.turn()
    assert again.report("t0002", 5) and not again.report("t0001", 5)


def test_all_below_a_quantile_stop(world):
    world.start()
    world.report("t0001", 5, loss=1.0)
    world.report("t0002", 5, loss=2.0)
    world.commands.send(Action.stop, quantile=0.0)
    world.turn()
    assert world.report("t0001", 10) and not world.report("t0002", 10)


def test_a_clone_is_made_once_however_often_its_command_is_read(world, run_config):
    world.start()
    command = world.commands.send(Action.clone, trial="t0001", values={"tuning.learning_rate_multiplier": 2.0})
    world.turn()
    (clone,) = [record for record in world.store.records.values() if record.origin is Origin.clone]
    assert clone.parent == "t0001" and clone.values["tuning.learning_rate_multiplier"] == 2.0
    world.commands._storage.delete(f"answers/{command.id}.json")
    again = World(run_config, run_config.run_dir)
    again.turn()
    assert [r.id for r in again.store.records.values() if r.origin is Origin.clone] == [clone.id]
    again.start()
    assert list(again.queue.live) == ["t0001", "t0002"] and clone.id in [record.id for record in again.queue.waiting]


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"trial": "t0009"}, "none of this sweep"),
        ({"trial": "t0001", "values": {"tuning.adapter_size": 2}}, "shares with its parent"),
        ({"trial": "t0001", "values": {"tuning.batch_siz": 2}}, "not a key"),
        ({"trial": "t0001", "values": {"data.train": "x"}}, "not allowed"),
        ({"trial": "t0001", "values": {"tuning.learning_rate_multiplier": -1}}, "> 0"),
        ({"trial": "t0001", "values": {"tuning.batch_size": "many"}}, "tuning.batch_size=many"),
    ],
)
def test_a_clone_that_cannot_be_is_refused_in_the_answer(world, about, why):
    world.start()
    world.commands.send(Action.clone, **about)
    world.turn()
    assert why in world.answers()[0] and '"done":false' in world.answers()[0].replace(" ", "")
    assert len(world.store.records) == 2 and world.steering.drain is None


def test_an_extension_adds_points_and_keeps_the_tried(world, run_config):
    world.start()
    world.commands.send(Action.extend, space={"tuning": {"adapter_size": [16]}})
    world.turn()
    assert world.desk.axes["tuning.adapter_size"].choices == (4, 8, 16) and world.steering.drain is None
    assert extensions(run_config.run_dir) == [{"tuning": {"adapter_size": [16]}}]
    assert world.queue.proposals.num_left() == 4


def test_an_extension_that_the_pack_cannot_hold_drains_it(world):
    world.runner.fitting = False
    world.start()
    world.commands.send(Action.extend, space={"tuning": {"adapter_size": [64]}})
    world.turn()
    assert world.steering.drain is Drain.changed and world.queue.is_finished()


@pytest.mark.parametrize(
    ("size", "why"), [(100_000, "tuning.adapter_size=100000"), ("large", "tuning.adapter_size=large is not allowed")]
)
def test_an_extension_that_no_trial_can_have_is_refused_and_leaves_nothing(world, run_config, size, why):
    world.start()
    world.commands.send(Action.extend, space={"tuning": {"adapter_size": [size]}})
    world.turn()
    assert why in world.answers()[0] and extensions(run_config.run_dir) == [] and world.steering.drain is None
    assert world.desk.axes["tuning.adapter_size"].choices == (4, 8)


def test_a_command_that_fails_does_not_end_the_sweep(world, monkeypatch):
    monkeypatch.setattr(CommandDesk, "_pause", lambda desk, command: 1 / 0)
    world.start()
    world.commands.send(Action.pause)
    world.turn()
    assert "ZeroDivisionError" in world.answers()[0] and world.report("t0001", 5)


def test_a_pause_leaves_trials_unfinished(world, run_config):
    world.start()
    world.commands.send(Action.pause)
    world.turn()
    assert is_paused(run_config.run_dir) and world.steering.drain is Drain.paused
    assert not world.report("t0001", 3) and not world.report("t0002", 3)
    assert world.store.endings == {} and world.queue.live == {}


def test_a_cancel_outlives_the_driver_that_took_it_and_ends_with_the_sweep(world, run_config):
    world.start()
    world.commands.send(Action.cancel)
    world.turn()
    assert world.steering.drain is Drain.cancelled
    job = SimpleNamespace(first=[])
    killed = tuner.SweepRun(job, False, False, world.store, world.steering.spending)
    killed.run(Phase(config=run_config, examples=None))
    assert killed.drained is Drain.cancelled
    forget_cancel(run_config.run_dir)
    assert not is_cancelled(run_config.run_dir)


def test_a_used_up_budget_has_trials_report_once_more(run_config):
    world = World(run_config, run_config.run_dir, hours=100 / 3600)
    world.start()
    world.turn(50)
    assert world.steering.drain is None
    world.turn(60)
    assert world.steering.drain is Drain.budget and world.runner.hastened == [["t0001", "t0002"]]
    assert world.queue.next_trial() is None and not world.report("t0001", 3)


def test_a_budget_that_is_used_up_before_any_report_waits_a_little_for_one_trial(run_config):
    world = World(run_config, run_config.run_dir, hours=1 / 3600)
    world.queue.next_trial()
    world.queue.next_trial()
    world.turn(10)
    assert list(world.queue.live) == ["t0001"] and not world.runner.hastened
    world.queue.live["t0001"].status = Trial.RUNNING
    world.turn(5)
    assert world.runner.hastened == [["t0001"]] and not world.report("t0001", 1)


def test_a_trial_that_does_not_start_outlasts_no_budget(run_config):
    world = World(run_config, run_config.run_dir, hours=1 / 3600)
    world.queue.next_trial()
    world.turn(10)
    world.turn(FIRST_REPORT_SECONDS + 1)
    assert not world.queue.live and not world.store.endings


def test_intervals_between_reports_are_those_of_trials_that_run(run_config):
    world = World(run_config, run_config.run_dir, hours=1)
    world.start()
    for id, seconds in (("t0001", 10), ("t0001", 30), ("t0002", 0), ("t0002", 20)):
        world.now += seconds
        world.report(id, int(world.now))
    world.turn()
    assert world.steering.intervals == {"t0001": (30, 30.0), "t0002": (20, 20.0)}
    world.stop_trial(world.queue.live["t0001"])
    world.turn()
    assert world.steering.intervals == {"t0002": (20, 20.0)}
    world.stop_trial(world.queue.live["t0002"])
    world.start()
    world.turn()
    assert world.steering.intervals == {"t0002": (20, 20.0)}


def test_a_budget_of_trials_starts_no_more(run_config):
    world = World(run_config, run_config.run_dir, most=1)
    world.start()
    assert list(world.queue.live) == ["t0001"] and world.queue.is_finished()


def test_what_has_not_started_ends_at_once_when_the_sweep_is_drained(world):
    world.queue.next_trial()
    world.steering.begin(Drain.unresolvable, "nothing more can be learned")
    world.turn()
    assert world.queue.live == {} and world.store.endings == {}


def test_a_judge_ends_the_sweep(world):
    world.start()
    world.turn()
    world.steering.judge = lambda: "nothing is left to learn"
    world.turn()
    assert world.steering.drain is Drain.unresolvable and world.steering.why == "nothing is left to learn"


def test_a_judge_looks_again_only_after_reports_and_not_too_often(world, monkeypatch):
    asked = []

    def judged(objective, curves, *, num_pending, records, seed):
        asked.append({id: (tuple(curve.steps), tuple(curve.costs)) for id, curve in curves.items()})
        return SimpleNamespace(stop=False, text="")

    monkeypatch.setattr(judge, "judge", judged)
    world.steering.judge = judge.Judge(world.queue, clock=lambda: world.now)
    world.start()
    world.turn()
    world.report("t0001", 5, loss=2.0)
    world.turn()
    world.report("t0001", 10, loss=1.0)
    world.turn(1)
    world.turn()
    world.turn()
    assert asked == [{"t0001": ((5,), (2.0,)), "t0002": ((), ())}, {"t0001": ((5, 10), (2.0, 1.0)), "t0002": ((), ())}]
