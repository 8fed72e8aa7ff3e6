"""Reports of one pack are told one at a time, in the scheduler's order."""

import math

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from raytune_llm.job import Report
from raytune_llm.sweep.scheduler import ASHA
from raytune_llm.training.packed.turns import PATIENCE_SECONDS, Turns


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def best_first(values):
    return sorted(range(len(values)), key=values.__getitem__)


def line(order, *found, clock=None, lower_is_better=True):
    turns = Turns(order, clock=clock or Clock())
    turns.add(
        [(name, Report(step=step, metrics={"m": m})) for name, step, m in found], "m", lower_is_better=lower_is_better
    )
    return turns


def told(turns, names):
    """The order in which they get their turns, each decided at once."""
    names, order = list(names), []
    while names:
        speakers = [name for name in names if turns.has(name)]
        assert len(speakers) == 1 or not order
        order.append(speakers[0])
        names.remove(speakers[0])
        turns.end(speakers[0])
    return "".join(order)


def test_one_after_another_in_the_given_order_lower_steps_first():
    found = [("a", 2, 0.3), ("b", 2, 0.1), ("c", 1, 0.9), ("d", 2, math.nan)]
    assert told(line(best_first, *found), "abcd") == "cbad"
    assert told(line(best_first, *found[:2], lower_is_better=False), "ab") == "ab"


def test_without_an_order_nobody_waits():
    turns = line(None, ("a", 2, 0.3), ("b", 2, 0.1))
    assert turns.has("a") and turns.has("b")


def test_who_is_not_in_line_may_speak_and_who_leaves_it_holds_up_nobody():
    turns = line(best_first, ("a", 2, 0.1), ("b", 2, 0.2), ("c", 2, 0.3))
    assert turns.has("late") and not turns.has("c")
    turns.end("b")
    turns.end("a")
    assert turns.has("c")


def test_the_others_wait_for_a_decision_only_so_long():
    clock = Clock()
    turns = line(best_first, ("a", 2, 0.1), ("b", 2, 0.2), ("c", 2, 0.3), clock=clock)
    clock.now = PATIENCE_SECONDS - 0.1
    turns.end("a")
    clock.now = PATIENCE_SECONDS + 0.1
    assert turns.has("b") and not turns.has("c"), "b has had its turn for 0.2 s"
    clock.now = 2 * PATIENCE_SECONDS
    assert turns.has("c")


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=20, unique=True),
    st.integers(2, 4),
)
def test_asha_passes_just_the_best_of_those_told_in_its_order(losses, factor):
    """Ray Tune's own ASHA, which knows of each only those that it was told before."""
    settings = ASHA(grace_steps=1, reduction_factor=factor)
    scheduler = settings.build("loss", "min", 100)
    passed = set()
    for place in settings.order(losses):
        trial = Trial("trainable", trial_id=str(place), stub=True)
        scheduler.on_trial_add(None, trial)
        if scheduler.on_trial_result(None, trial, {"step": 1, "loss": losses[place]}) == TrialScheduler.CONTINUE:
            passed.add(place)
    assert isinstance(scheduler, ASHAScheduler)
    assert passed == set(best_first(losses)[: math.ceil(len(losses) / factor)])
