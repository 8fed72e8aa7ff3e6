"""The running sweep's table."""

from types import SimpleNamespace

import pytest

from raytune_llm.sweep.progress import LiveTable
from raytune_llm.training.objective import Objective


@pytest.mark.parametrize(("lower", "first", "best"), [(True, "a", "0.5"), (False, "b", "2")])
def test_trials_are_listed_best_first_by_the_objective(lower, first, best):
    table = LiveTable(Objective("eval/x", lower_is_better=lower), num_trials=2, steps=20, interactive=False)
    table.setup()
    for id, values in {"a": (0.5, 1.0), "b": (1.5, 2.0)}.items():
        trial = SimpleNamespace(trial_id=id, config={"tuning.adapter_size": 4})
        for place, value in enumerate(values, 1):
            table.on_trial_result(1, [], trial, {"step": 10 * place, "eval/x": value, "train/loss": 1.0})
    table.on_trial_complete(1, [], SimpleNamespace(trial_id="b"))
    assert table.done() == 40
    lines = table.text().splitlines()
    assert lines[1].startswith("1 of 2 trials ended, 1 running")
    assert lines[2].split() == ["trial", "adapter_size", "step", "train/loss", "eval/x", "best"]
    assert lines[4].split()[0] == first and lines[4].split()[5] == best
    restored = LiveTable(table.objective, num_trials=2, steps=20, interactive=False)
    restored.set_state(table.get_state())
    assert restored.done_before == 40 and restored.rows == table.rows
