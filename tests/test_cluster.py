"""How a job comes to its Ray session, and what becomes of a sweep whose node is lost."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from traps import Trap
from worlds import write_base, write_records

from raytune_llm import cluster, session
from raytune_llm.compat import AutoscalerReport
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
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", **environment},
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


def test_ray_begins_to_start_before_anything_large_is_imported(tmp_path):
    """Those imports take as long as its start, and continue meanwhile."""
    overrides = (f"data.train={write_records(tmp_path)[0]}", "model=demo", f"home={tmp_path}")
    assert script(tmp_path, BEGINS, *overrides) == "train set()\nsweep set()\n"


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


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder with the device files of two GPUs, which Ray counts or not, and CUDA sees."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_OVERRIDE_RESOURCES", raising=False)
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    return tmp_path


def test_a_gpu_shows_by_its_device_files(machine, tmp_path, monkeypatch):
    assert cluster.shows_gpu(machine)
    assert not cluster.shows_gpu(tmp_path / "nowhere")
    for file in machine.glob("dev/nvidia[01]"):
        file.unlink()
    assert not cluster.shows_gpu(machine)
    (machine / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert cluster.shows_gpu(machine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cluster.shows_gpu(machine)


@pytest.mark.parametrize(
    ("shows", "counted", "seen", "override", "expected", "line"),
    [
        (True, 0, 2, None, 2, "Ray counts no GPU here, CUDA sees 2: this session has 2"),
        (True, 0, 0, None, 0, "! this machine has a GPU that CUDA can't use (see nvidia-smi)"),
        (True, 2, 2, None, 0, ""),
        (True, 0, 2, '{"GPU": 1}', 0, ""),
        (False, 0, 2, None, 0, ""),
    ],
)
def test_gpus_that_cuda_sees_and_ray_does_not_count(
    monkeypatch, capsys, shows, counted, seen, override, expected, line
):
    monkeypatch.setattr(cluster, "shows_gpu", lambda: shows)
    monkeypatch.setattr(cluster, "ray_gpu_count", lambda: counted)
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", override or "{}")
    assert cluster.uncounted_gpus() == expected
    printed = capsys.readouterr().out
    assert printed.startswith(line) and bool(printed) == bool(line)


SESSION = """
import os, psutil
from raytune_llm import cluster

cluster.uncounted_gpus = lambda: 2
cluster.connect(dashboard=False)
import ray

def visible():
    return repr(os.environ.get("CUDA_VISIBLE_DEVICES")), os.environ["PYTORCH_ALLOC_CONF"]

print(cluster.total_gpus(), cluster.uses_gpu(None), cluster.uses_gpu(False))
print([ray.get(ray.remote(num_gpus=share, num_cpus=0)(visible).remote()) for share in (0, 1, 2)])
print(sum("dashboard-NodeHead" in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)))
"""


def test_a_session_of_its_own_has_the_gpus_that_cuda_sees_and_hides_them_from_who_reserves_none(tmp_path, monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    found = script(tmp_path, SESSION, PYTORCH_CUDA_ALLOC_CONF="backend:native").splitlines()
    assert found[0] == "2.0 True False"
    assert eval(found[1]) == [("''", "backend:native"), ("'0'", "backend:native"), ("'0,1'", "backend:native")]
    assert found[2] == "0"  # without the dashboard, as requested


def test_a_cluster_that_counts_no_gpu_of_this_machine_is_reported(ray_session, monkeypatch, capsys):
    import ray

    address = ray.get_runtime_context().gcs_address
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(cluster, "running_ray_address", lambda: address)
    for shows in (False, True):
        monkeypatch.setattr(cluster, "shows_gpu", lambda shows=shows: shows)
        cluster.connect()
        assert ("RAY_OVERRIDE_RESOURCES='{\"GPU\": N}'" in capsys.readouterr().out) is shows


def fake_cluster(monkeypatch, gpus, reports):
    """The cluster has gpus[i] GPUs, and its autoscaler last reported reports[i], at the i-th look at the clock; the
    last of each stays. What was requested."""
    requested, looks = [], [0]

    def at(values):
        return values[min(looks[0], len(values) - 1)]

    def sleep(seconds):
        looks[0] += 1

    clock = SimpleNamespace(monotonic=lambda: 30.0 * looks[0], sleep=sleep)
    monkeypatch.setattr(cluster, "time", clock)
    monkeypatch.setattr(cluster, "total_gpus", lambda: float(at(gpus)))
    monkeypatch.setattr(cluster, "autoscaler_report", lambda: at(reports))
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: requested.append(bundles))
    return requested


IDLE = AutoscalerReport({}, False, {})
STARTS = AutoscalerReport({"gpu": 2}, True, {"big": "NoCapacity: none left"})
TWO = [{"GPU": 1, "CPU": 4}] * 2


@pytest.mark.parametrize("requested", [True, None])
def test_an_autoscaler_is_asked_for_gpus_and_waited_for(monkeypatch, capsys, requested):
    asked = fake_cluster(monkeypatch, [0, 0, 0, 0, 1], [IDLE, STARTS])
    assert cluster.uses_gpu(requested, bundles=TWO) is True
    assert asked == [TWO, []]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the cluster has no GPU yet; asking its autoscaler for 2 × {'GPU': 1, 'CPU': 4} …"
    assert lines[1] == "waiting for a GPU node, 90 of at most 900 s; being started: 2 gpu"
    assert lines[-1] == "a GPU joined the cluster after 120 s"


def test_without_gpu_nodes_to_start_the_cpus_are_used_unless_gpus_are_required(monkeypatch, capsys):
    asked = fake_cluster(monkeypatch, [0], [IDLE])
    assert cluster.uses_gpu(None, bundles=TWO) is False
    assert asked == [TWO, []] and "starts no GPU node; this job computes on CPUs" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"within 100 s \(being started: none\).*scaling\.use_gpu=false"):
        cluster.uses_gpu(True, bundles=TWO, wait_seconds=100)
    assert asked == [TWO, [], TWO, []]
    assert cluster.uses_gpu(False, bundles=TWO) is False and len(asked) == 4


def test_what_is_being_started_is_waited_for_until_the_time_is_up(monkeypatch):
    asked = fake_cluster(monkeypatch, [0], [STARTS])
    with pytest.raises(InputError, match=r"being started: 2 gpu; big: NoCapacity: none left\).*set k=false"):
        cluster.uses_gpu(None, key="k", bundles=TWO, wait_seconds=200)
    assert asked[-1] == []


def test_fewer_gpus_than_workers_need_are_refused_unless_an_autoscaler_can_add_some(monkeypatch):
    fake_cluster(monkeypatch, [1], [None])
    with pytest.raises(InputError, match=r"scaling\.use_gpu: 2 workers need 2 GPUs, and the cluster has 1; lower"):
        cluster.uses_gpu(None, bundles=TWO)
    assert cluster.uses_gpu(None, bundles=[{"GPU": 0.5}] * 2) is True
    fake_cluster(monkeypatch, [1], [IDLE])
    assert cluster.uses_gpu(None, bundles=TWO) is True


AUTOSCALES = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 << 20},
            "node_config": {},
            "max_workers": 2,
        },
    },
    "head_node_type": "ray.head.default",
    **{key: {} for key in ("docker", "auth", "file_mounts")},
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    "file_mounts_sync_continuously": False,
}
ASKS_FOR_GPUS = """
from raytune_llm import cluster, compat

cluster.connect()
cluster.REACTION_SECONDS = 5
print("autoscales:", compat.autoscaler_report() is not None)
print("absurd:", cluster.uses_gpu(None, bundles=[{"GPU": 1, "CPU": 100}]))
print("uses:", cluster.uses_gpu(None, bundles=[{"GPU": 1, "CPU": 1}], wait_seconds=60), cluster.total_gpus())
"""


@contextlib.contextmanager
def autoscaled_cluster():
    """Ray's fake autoscaler over nodes of this machine; the head has no GPU. Its address."""
    from ray.util import get_node_ip_address

    with tempfile.TemporaryDirectory(prefix="ra", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = f"{get_node_ip_address()}:{port}"
        provider = {"type": "fake_multinode", "gcs_address": address, "launch_multiple": True}
        Path(scratch, "autoscaler.json").write_text(json.dumps(AUTOSCALES | {"provider": provider}))
        command = [
            Path(sys.executable).with_name("ray"),
            "start",
            "--head",
            f"--port={port}",
            "--num-cpus=1",
            "--block",
        ]
        command += [f"--autoscaling-config={scratch}/autoscaler.json", f"--temp-dir={scratch}"]
        command += ["--include-dashboard=false", f"--node-ip-address={get_node_ip_address()}"]
        environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = psutil.Process(head.pid)
        try:
            yield address
        finally:
            processes = [started, *started.children(recursive=True)]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            head.wait()


@pytest.mark.slow
def test_a_real_autoscaler_starts_a_gpu_node(tmp_path):
    """Slow for its cluster, whose autoscaler takes some seconds to react."""
    with autoscaled_cluster() as address:
        output = script(tmp_path, ASKS_FOR_GPUS, RAY_ADDRESS=address)
    assert "autoscales: True\n" in output and "absurd: False\n" in output and "uses: True 1.0\n" in output


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
    from raytune_llm.sweep.phases import Phase

    cluster.set_environment()
    session.authenticate()
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
        prepared = prepare(job)
        config = job.trial_config(prepared.better)
        phase = Phase(config=config, examples=ray.put(prepared.examples))
        outcomes = tuner.run(job.sweep, [phase], use_gpu=False, interactive=False).outcomes
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
