"""How a job comes to its Ray session, and what becomes of a sweep whose node is lost."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from traps import Trap
from worlds import write_base, write_records

from raytune_llm import cluster
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load

TESTS = Path(__file__).parent
ASKS = """
import os, ray
from raytune_llm import cluster

def seen():
    from ray.util.state import list_nodes
    return len(list_nodes()), os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"], os.environ["TUNE_GLOBAL_CHECKPOINT_S"]

cluster.connect()
cluster.connect()
print("seen:", *ray.get(ray.remote(seen).remote()))
print("left:", *(name for name in os.environ if name in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT")))
"""


def script(folder, content, *arguments, **environment):
    """The output of a Python program in a process of its own."""
    file = folder / "program.py"
    file.write_text(content)
    done = subprocess.run(
        [sys.executable, file, *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_malformed_address_is_refused(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match="RAY_ADDRESS=nonsense can't be used: Invalid address format"):
        cluster.connect()


def test_a_session_of_its_own_next_to_another_one(ray_session, tmp_path):
    """Its workers find it, not the one of this process; they have the settings, of which the user's own win."""
    output = script(tmp_path, ASKS, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="5")
    assert f"seen: 1 5 {cluster.ENVIRONMENT['TUNE_GLOBAL_CHECKPOINT_S']}" in output
    assert "left:\n" in output


BEGINS = """
import sys
from raytune_llm.jobs import commands, setup
from raytune_llm.jobs.config import load

class Begins(Exception):
    pass

def while_ray_starts(prepare, dashboard):
    raise Begins

setup.while_ray_starts = while_ray_starts
for root, job in (("train", commands.train), ("sweep", commands.sweep)):
    try:
        job(load(root, sys.argv[1:]))
    except Begins:
        print(root, {"ray", "torch", "transformers"} & set(sys.modules))
"""
DASHBOARD = """
import sys, psutil
from raytune_llm import cluster

cluster.connect(dashboard=sys.argv[1] == "True")
print(sum("dashboard-NodeHead" in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)))
"""


def test_ray_begins_to_start_before_anything_large_is_imported(tmp_path):
    """Those imports take as long as its start, and continue meanwhile."""
    overrides = (f"data.train={write_records(tmp_path)[0]}", "model=demo", f"home={tmp_path}")
    assert script(tmp_path, BEGINS, *overrides) == "train set()\nsweep set()\n"


@pytest.mark.parametrize("dashboard", [True, False])
def test_a_local_session_has_the_dashboard_that_is_requested(tmp_path, dashboard):
    assert script(tmp_path, DASHBOARD, str(dashboard)) == f"{int(dashboard)}\n"


@pytest.mark.parametrize(
    ("root", "more", "drives"),
    [
        ("train", (), True),
        ("sweep", (), False),
        ("sweep", ("scaling.num_workers=2",), True),
        ("sweep", ("method=rlhf",), True),
    ],
)
def test_which_jobs_drive_ray_train(tmp_path, root, more, drives):
    overrides = [f"data.train={write_records(tmp_path)[0]}", "model=demo", f"home={tmp_path}", *more]
    assert load(root, overrides).drives_ray_train is drives


def test_gpus_are_refused_where_there_are_none(ray_session):
    assert cluster.uses_gpu(None) is cluster.uses_gpu(False) is False
    with pytest.raises(ValueError, match=r"scaling\.use_gpu=true, but the cluster has no GPU; set it to null or false"):
        cluster.uses_gpu(True)


LOSES = """
import json, sys
import test_cluster
test_cluster.sweep_on_two_nodes(*sys.argv[1:])
"""


def sweep_on_two_nodes(folder, marker):
    """A sweep of two trials at a time on two nodes; with a marker, the second node is killed at step 6."""
    import ray
    from ray.cluster_utils import Cluster

    from raytune_llm.jobs.config import load
    from raytune_llm.jobs.prepare import prepare
    from raytune_llm.sweep import tuner
    from raytune_llm.sweep.plan import make_plan

    cluster.set_environment()
    job = load(
        "sweep",
        [
            f"model.name_or_path={folder}/base",
            f"data.train={folder}/train.jsonl",
            f"data.eval={folder}/eval.jsonl",
            f"home={folder}/{'disturbed' if marker else 'calm'}",
            *("run=one", "tuning.eval_every=2", "tuning.batch_size=4", "tuning.early_stopping.patience=null"),
            *("model.learning_rate=1e-2", "sweep/backend=ray_train", "sweep/scheduler=none"),
            *("sweep.space.tuning.steps=[12]", "sweep.space.tuning.adapter_size=[1,2,4]"),
            "sweep.space.tuning.learning_rate_multiplier=[1.0]",
        ],
    )
    with tempfile.TemporaryDirectory(prefix="rn", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        os.environ["RAY_TMPDIR"] = scratch
        Path(scratch, "ray").mkdir()
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = nodes.add_node(num_cpus=1)
        environment = {"env_vars": {name: os.environ[name] for name in cluster.ENVIRONMENT}}
        ray.init(nodes.address, runtime_env=environment, logging_level="warning")
        if marker:
            raylet = second.all_processes["raylet"][0].process.pid
            job = dataclasses.replace(job, tracking={"trap": Trap(marker, step=6, pid=raylet)})
        prepared, plan = prepare(job), make_plan(job.trial_config(), job.sweep.axes())
        config = job.trial_config(prepared.better)
        outcomes = tuner.run(job.sweep, config, plan, ray.put(prepared.examples), False, False)
        print("nodes:", sum(node["Alive"] for node in ray.nodes()))
        curves = {
            str(outcome.trial.values["tuning.adapter_size"]): [
                outcome.ended,
                *(report.metrics["eval/loss"] for report in outcome.reports),
            ]
            for outcome in outcomes
        }
        print("curves:", json.dumps(curves))
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
def test_a_sweep_outlives_a_node(tmp_path):
    """Slow for its two clusters of two nodes. The trial that ran there continues elsewhere, from its checkpoint."""
    write_base(tmp_path / "base", "llama")
    write_records(tmp_path)
    marker = tmp_path / "sprung"
    calm, disturbed = (script(tmp_path, LOSES, str(tmp_path), name) for name in ("", str(marker)))
    assert "nodes: 2" in calm and "nodes: 1" in disturbed and marker.exists()
    curves = [json.loads(output.partition("curves:")[2]) for output in (calm, disturbed)]
    assert {curve[0] for curve in curves[1].values()} == {"complete"} and set(curves[1]) == {"1", "2", "4"}
    for size, (_, *losses) in curves[1].items():
        assert len(losses) == 6 and losses == pytest.approx(curves[0][size][1:], rel=1e-6)
