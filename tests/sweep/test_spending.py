"""What a sweep has used of its budget."""

import math

import pytest

from raytune_llm.errors import InputError
from raytune_llm.sweep.budget import Budget
from raytune_llm.sweep.spending import Prices, Spending

NONE = {"hours": None, "gpu_hours": None, "usd": None, "tokens": None, "trials": None}


def prices(**others):
    usual = {"num_gpus": 2, "num_nodes": 1, "usd_per_hour": 3.0, "tokens_per_example": 10.0, "reserve_seconds": 600.0}
    return Prices(**usual | others)


def spending(tmp_path, own=None, **limits):
    made = Spending(str(tmp_path), Budget(**NONE | limits), own or prices())
    made.start(0.0, began=-600.0)
    return made


def exhausted(spent, coming=None, report_seconds=0.0):
    return spent.exhausted(coming or {}, report_seconds=report_seconds)


def test_nothing_is_used_up_without_a_budget(tmp_path):
    spent = spending(tmp_path)
    spent.count(1e9)
    assert exhausted(spent) is None


@pytest.mark.parametrize(
    ("limits", "still", "over"),
    [
        ({"hours": 1.0}, 2300, 2500),  # ten minutes before it began, ten are kept for the end
        ({"gpu_hours": 2.0}, 2900, 3100),  # two GPUs, held since it began
        ({"usd": 6.0}, 2300, 2500),  # two GPUs at 3 an hour
    ],
)
def test_time_and_money_are_used_up_before_the_end_would_exceed_them(tmp_path, limits, still, over):
    spent = spending(tmp_path, **limits)
    spent.count(still)
    assert exhausted(spent) is None
    spent.count(over)
    assert exhausted(spent) == f"sweep.budget.{next(iter(limits))}={next(iter(limits.values())):g}"


def test_what_running_trials_take_to_their_next_reports_counts(tmp_path):
    spent = spending(tmp_path, tokens=1000.0)
    spent.batch_sizes, spent.steps = {"a": 4, "b": 1}, {"a": 20, "b": 10}
    assert spent.tokens == 900 and exhausted(spent, {"b": 5}) is None
    assert exhausted(spent, {"a": 5}) == "sweep.budget.tokens=1000"
    timed = spending(tmp_path, hours=1.0)
    timed.count(2300)
    assert exhausted(timed, report_seconds=200) == "sweep.budget.hours=1"


def test_a_restart_counts_on_and_a_pause_is_free(tmp_path):
    spent = spending(tmp_path)
    spent.count(100.0)
    spent.skip(5000.0)
    spent.count(5100.0)
    assert spent.seconds == 800 and spent.gpu_seconds == 400
    spent.save()
    again = Spending(str(tmp_path), Budget(**NONE), prices())
    again.start(7.0, began=0.0)
    assert again.seconds == 807 and again.gpu_seconds == 400
    assert again.amounts()["usd"] == pytest.approx(807 / 3600 * 2 * 3.0)


def test_without_gpus_nodes_are_paid(tmp_path):
    spent = spending(tmp_path, prices(num_gpus=0, num_nodes=4))
    assert spent.usd == pytest.approx(600 / 3600 * 4 * 3.0)


@pytest.mark.parametrize(
    ("limits", "own", "key"),
    [
        ({"usd": 1.0}, {"usd_per_hour": None}, "scaling.usd_per_hour"),
        ({"gpu_hours": 1.0}, {"num_gpus": 0}, "use hours"),
    ],
)
def test_what_cannot_be_counted_is_refused(tmp_path, limits, own, key):
    with pytest.raises(InputError, match=key):
        spending(tmp_path, prices(**own), **limits)


@pytest.mark.parametrize(
    ("limits", "left"),
    [({}, math.inf), ({"tokens": 5.0}, math.inf), ({"hours": 1.0}, 2000), ({"gpu_hours": 1.0, "hours": 9.0}, 800),
     ({"usd": 3.0, "hours": 1.0}, 200), ({"hours": 0.1}, 0)],
)  # fmt: skip
def test_seconds_that_a_budget_leaves(tmp_path, limits, left):
    spent = spending(tmp_path, **limits)
    spent.count(1000.0)
    assert spent.seconds_left() == pytest.approx(left)


def test_a_budget_is_positive():
    with pytest.raises(InputError, match=r"sweep\.budget\.hours=0"):
        Budget(**NONE | {"hours": 0})
