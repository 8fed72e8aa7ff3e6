"""The running sweep's table."""

from types import SimpleNamespace

import pytest

from raytune_llm.sweep.progress import LiveTable
from raytune_llm.sweep.trial_store import Ending
from raytune_llm.training.objective import Objective


def steering_of(objective, records, endings, steps, num_left=0):
    """As much of a steered sweep as the table looks at."""
    proposals = SimpleNamespace(
        objective=objective,
        store=SimpleNamespace(records=dict.fromkeys(records), endings=endings),
        plan=SimpleNamespace(most_steps=lambda: 20, keys=["tuning.adapter_size"]),
        num_left=lambda: num_left,
    )
    live = [id for id in records if id not in endings]
    return SimpleNamespace(queue=SimpleNamespace(proposals=proposals, live=live), spending=SimpleNamespace(steps=steps))


@pytest.mark.parametrize(("lower", "first", "best"), [(True, "a", "0.5"), (False, "b", "2")])
def test_trials_are_listed_best_first_by_the_objective(lower, first, best):
    endings, steps = {}, {}
    table = LiveTable(steering_of(Objective("eval/x", lower_is_better=lower), "ab", endings, steps, 1), False)
    table.setup()
    for id, values in {"a": (0.5, 1.0), "b": (1.5, 2.0)}.items():
        trial = SimpleNamespace(trial_id=id, config={"tuning.adapter_size": 4})
        for place, value in enumerate(values, 1):
            steps[id] = 10 * place
            table.on_trial_result(1, [], trial, {"step": 10 * place, "eval/x": value, "train/loss": 1.0})
    endings["b"] = Ending(why="complete", checkpoint=None)
    table.steering.queue.live.remove("b")
    table.on_trial_complete(1, [], SimpleNamespace(trial_id="b"))
    assert table.done() == 40 and table.num_trials == 3
    lines = table.text().splitlines()
    assert lines[1].startswith("1 of 3 trials ended, 1 running")
    assert lines[2].split() == ["trial", "adapter_size", "step", "train/loss", "eval/x", "best"]
    assert lines[4].split()[0] == first and lines[4].split()[5] == best


def test_what_an_earlier_start_has_done_counts():
    endings = {"a": Ending(why="scheduler", checkpoint=None)}
    table = LiveTable(steering_of(Objective("eval/x", lower_is_better=True), "ab", endings, {"a": 5, "b": 10}), False)
    table.setup()
    assert table.done_before == table.done() == 30
