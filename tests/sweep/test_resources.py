"""What trials reserve, each by its own point, and how many run at a time."""

import dataclasses

import pytest

from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load
from raytune_llm.sweep import resources
from raytune_llm.sweep.axes import Axis
from raytune_llm.sweep.plan import Plan

WORKERS, CPUS = resources.NUM_WORKERS, resources.CPUS


def own(**values):
    scaling = load("sweep", ["model=demo", "data=demo_sarcasm"]).scaling
    return dataclasses.replace(scaling, **values)


def plan(**axes):
    keys = {"workers": WORKERS, "cpus": CPUS}
    found = {keys[name]: Axis(choices=choices) for name, choices in axes.items()}
    return Plan(found, (9,), dict.fromkeys(found, 1))


def test_a_trial_reserves_what_its_own_point_says():
    def reserved(point, **values):
        return resources.resources(own(**values), point, use_gpu=False).required_resources

    assert reserved({"tuning.adapter_size": 4}) == {"CPU": 1.0}
    assert reserved({CPUS: 0.5}, cpus_per_worker=2.0) == {"CPU": 0.5}
    assert reserved({WORKERS: 2}) == resources.DRIVER, "its workers are placed by Ray Train"
    assert reserved({WORKERS: 1}, num_workers=2) == {"CPU": 1.0}
    on_gpu = resources.resources(own(gpus_per_worker=0.5), {}, use_gpu=True)
    assert on_gpu.required_resources == {"CPU": 1.0, "GPU": 0.5}


def test_workers_are_counted_node_by_node():
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]
    assert resources.num_workers(nodes, {"CPU": 2.0}) == 3
    assert resources.num_workers(nodes, {"CPU": 0.5}) == 14
    assert resources.num_workers(nodes, {"CPU": 1.0, "GPU": 0.5}) == 2


@pytest.fixture
def two_nodes(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 99.0}}]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources, "autoscaler_report", lambda: None)


def test_as_many_trials_run_at_a_time_as_fit_if_all_were_the_largest(two_nodes):
    def at_a_time(planned, **values):
        return resources.concurrency(own(**values), planned, use_gpu=False)

    assert at_a_time(plan()) is at_a_time(plan(cpus=(1, 2))) is None, "Ray Tune places them itself"
    assert at_a_time(plan(), num_workers=2) == at_a_time(plan(workers=(1, 2))) == 4
    assert at_a_time(plan(workers=(1, 2), cpus=(1, 2))) == 2
    assert at_a_time(plan(workers=(1, 2), cpus=(1, 3))) == 1, "one worker of 3 CPUs a node"
    first = Plan({}, (9,), {WORKERS: 1}, first=({WORKERS: 8},))
    assert at_a_time(first) == 1


def test_a_trial_that_the_cluster_can_never_hold_is_refused(two_nodes, monkeypatch):
    with pytest.raises(InputError, match=r"num_workers=4: the cluster has room for 2 workers of 3 CPU each; lower"):
        resources.concurrency(own(), plan(workers=(1, 4), cpus=(1, 3)), use_gpu=False)
    with pytest.raises(InputError, match=r"num_workers=1: the cluster has room for 0 workers of 5 CPU each"):
        resources.concurrency(own(cpus_per_worker=5), plan(), use_gpu=False)
    monkeypatch.setattr(resources, "autoscaler_report", lambda: object())
    assert resources.concurrency(own(), plan(workers=(1, 4), cpus=(1, 3)), use_gpu=False) == 1
