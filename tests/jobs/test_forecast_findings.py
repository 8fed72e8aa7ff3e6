"""What a forecast shows that should be changed, each finding with what to change."""

from dataclasses import replace

import pytest
from test_forecast import ASHA_3, MEASURED, NO_STOPS, ONE_BY_ONE, trials, workload

from raytune_llm.jobs.forecast_findings import findings
from raytune_llm.sweep.budget import Budget
from raytune_llm.sweep.forecast import make_forecast

FREE = Budget(hours=None, gpu_hours=None, usd=None, tokens=None, trials=None)
CHEAP = replace(MEASURED, evaluations={1: 0.1, 4: 0.3}, comparing=None)


def found(budget=FREE, **changes):
    return list(findings(make_forecast(workload(**{"rehearsal": CHEAP} | changes)), budget))


def test_a_sound_sweep_has_none():
    assert found() == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rehearsal": replace(CHEAP, evaluations={1: 40.0})}, "tuning.eval_every="),
        ({"course": replace(NO_STOPS, eval_every=30, milestones=())}, "evaluated once"),
        ({"course": replace(NO_STOPS, scheduler=replace(ASHA_3, grace_steps=20))}, "sweep.scheduler.grace_steps"),
        ({"rehearsal": replace(CHEAP, memory=replace(MEASURED.memory, free=150))}, "memory: 1 base"),
        ({"lengths": tuple(trials(4, steps=50_000))}, "finish in a day"),
        ({"rehearsal": replace(MEASURED, comparing=replace(MEASURED.comparing, read_seconds=20.0))}, "max_new_tokens"),
        ({"budget": replace(FREE, hours=0.001)}, "sweep.budget.hours=0.001"),
        ({"budget": replace(FREE, trials=2)}, "sweep.budget.trials=2"),
    ],
)
def test_each_finding_names_what_to_change(changes, named):
    lines = found(**changes)
    assert any(named in line for line in lines), lines


def test_packs_on_one_machine_share_its_memory():
    tight = replace(CHEAP, memory=replace(MEASURED.memory, peak=600))
    two = replace(ONE_BY_ONE, num_processes=2)
    on_cpus = replace(workload().device, num_gpus=0.0)
    assert any("memory: 2 bases" in line for line in found(rehearsal=tight, layout=two, device=on_cpus))
    assert found(rehearsal=tight, layout=two) == []
