"""`serve deploy` as an operator does it: two nodes, token authentication, the file of jobs/serve.py, rolled out anew
under load."""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
import yaml
from serving_world import greedy_text, make_base, publish, write_adapter
from test_ray_jobs import cluster, free_ports, session_of  # noqa: F401
from test_replicas import PROMPT, ask

from raytune_llm.models.loading import load_tuned
from raytune_llm.serving.catalog import read_catalog
from raytune_llm.serving.engine.loading import read_model
from raytune_llm.serving.engine.prompts import of_text
from raytune_llm.stores.registry import Registry

pytestmark = pytest.mark.slow  # minutes: a cluster of two nodes, three roll-outs under load

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
RUNNING_WITHIN_SECONDS = 180
KEY = "a-client-key-of-this-test"


@pytest.fixture(scope="module")
def second_node(cluster):  # noqa: F811
    """Another node of two CPUs, on this machine."""
    agent, grpc, metrics = free_ports(3)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={cluster.gcs}"),
        *("--num-cpus=2", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"),
        *(f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0"),
        *("--node-ip-address=127.0.0.1", "--disable-usage-stats"),
    ]
    path = f"{BIN}:{os.environ['PATH']}"
    with Path(cluster.folder, "second_log").open("w") as log:
        node = subprocess.Popen(
            command, env=cluster.environment(PATH=path), stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: num_nodes(cluster) == 2, lambda: Path(cluster.folder, "second_log").read_text())
        yield
    finally:
        for pid in session_of(node.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait(timeout=60)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    base = make_base(root / "tiny")
    registry = Registry(str(root / "home" / "registry"))
    for seed, name in enumerate(("wit", "dry"), 1):
        publish(registry, base, name, write_adapter(base, root / name, seed=seed))
    return registry


def until(condition, output):
    deadline = time.monotonic() + RUNNING_WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < deadline, output()
        time.sleep(0.5)


def run(cluster, *command, **more):  # noqa: F811
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=cluster.environment(**more),
        capture_output=True,
        text=True,
        timeout=RUNNING_WITHIN_SECONDS,
    )
    return done.returncode, done.stdout + done.stderr


def num_nodes(cluster):  # noqa: F811
    listed = f"{sys.executable} -m ray.scripts.scripts list nodes --format json --address {cluster.dashboard}".split()
    status, output = run(cluster, *listed)
    if status or "[" not in output:
        return 0
    return sum(node["state"] == "ALIVE" for node in json.loads(output[output.index("[") :]))


def deployed(cluster, file, **more):  # noqa: F811
    return run(cluster, f"{BIN}/serve", "deploy", str(file), "--address", cluster.dashboard, **more)


def states(cluster):  # noqa: F811
    """Ray Serve's own account."""
    status, output = run(cluster, f"{BIN}/serve", "status", "--address", cluster.dashboard)
    assert status == 0, output
    return yaml.safe_load(output[output.index("proxies") :])["applications"]["raytune_llm"]


def wait_for_roll_out(cluster):  # noqa: F811
    found = {}

    def is_running():
        found.update(states(cluster))
        endpoint = found["deployments"].get("endpoint", {"status": "", "replica_states": {}})
        return (found["status"], endpoint["status"], endpoint["replica_states"]) == (
            "RUNNING",
            "HEALTHY",
            {"RUNNING": 2},
        )

    time.sleep(1)  # the controller takes the new goal up
    until(is_running, lambda: str(found))


class Load:
    """Clients that send requests without pause until the context ends."""

    def __init__(self, url, answers):
        self._url, self._answers, self._is_running = url, answers, True
        self.num_right, self.failures = 0, []
        self._lock = threading.Lock()

    def __enter__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(8)
        self._running = [self._pool.submit(self._ask, i) for i in range(8)]
        return self

    def __exit__(self, *_):
        self._is_running = False
        self._pool.shutdown()
        for future in self._running:
            future.result()

    def _ask(self, i):
        model = list(self._answers)[i % len(self._answers)]
        asker = openai.OpenAI(base_url=self._url, api_key=KEY, max_retries=0, timeout=60)
        while self._is_running:
            try:
                text = ask(asker, model, 32)
            except openai.OpenAIError as error:
                outcome = repr(error)
            else:
                outcome = None if text == self._answers[model] else text
            with self._lock:
                self.num_right += outcome is None
                self.failures += [] if outcome is None else [outcome]


def test_a_file_is_deployed_and_rolled_out_anew_under_load(cluster, second_node, registry, tmp_path):  # noqa: F811
    (port,) = free_ports(1)
    url, file = f"http://127.0.0.1:{port}/v1", tmp_path / "endpoint.yaml"
    overrides = [
        *("adapter=wit", f"home={Path(registry.root).parent}", f"serve.config_file={file}", f"serve.port={port}"),
        *("serve.api_key_env=SOME_KEYS", "serve.num_replicas=2", "serve.max_replicas=2"),
        *("serve.engine.use_gpu=false", "serve.max_tokens=64"),
    ]
    status, output = run(cluster, sys.executable, "jobs/serve.py", *overrides, SOME_KEYS=KEY)
    assert status == 0 and str(file) in output and KEY not in file.read_text(), output
    status, output = deployed(cluster, file, RAY_AUTH_MODE="disabled")
    assert status != 0, output  # who has no token changes nothing
    status, output = deployed(cluster, file)
    assert status == 0, output
    wait_for_roll_out(cluster)

    base = read_catalog(registry, ["wit"]).base
    answers = {}
    for entry in read_catalog(registry, ["wit", "dry"]).entries[1:]:
        served = read_model(entry, base, registry, tmp_path)
        answers[entry.version.name] = greedy_text(
            load_tuned(served.folder, base), served, of_text(served, PROMPT).ids, 32
        )
    asker = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60)
    assert ask(asker, "wit", 32) == answers["wit"]
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(base_url=url, api_key="guess", max_retries=0), "wit")
    with pytest.raises(openai.NotFoundError):
        ask(asker, "dry")

    content = yaml.safe_load(file.read_text())
    with Load(url, {"wit": answers["wit"]}) as load:
        (application,) = content["applications"]
        application["deployments"][0]["user_config"]["versions"] = ["wit@1", "dry@1"]
        file.write_text(yaml.safe_dump(content))
        assert deployed(cluster, file)[0] == 0  # a further version is loaded while the other one answers
        wait_for_roll_out(cluster)
        until(lambda: is_served_everywhere(asker, "dry"), lambda: "dry is not served")
        num_loaded = load.num_right
        application["args"]["serve"]["max_tokens"] = 48
        application["args"]["versions"] = ["wit@1", "dry@1"]
        file.write_text(yaml.safe_dump(content))
        assert deployed(cluster, file)[0] == 0  # another limit: replicas are replaced, one after another
        until(lambda: states(cluster)["status"] == "DEPLOYING", lambda: str(states(cluster)))
        wait_for_roll_out(cluster)
        with pytest.raises(openai.BadRequestError, match="limit of 48"):
            ask(asker, "wit", 64)
    print(f"{load.num_right} answers during two roll-outs ({num_loaded} of them in the first), failed: {load.failures}")
    assert load.failures == [] and 0 < num_loaded < load.num_right
    assert ask(asker, "dry", 32) == answers["dry"]
    assert run(cluster, f"{BIN}/serve", "shutdown", "-y", "--address", cluster.dashboard)[0] == 0


def is_served_everywhere(asker, model):
    """By either replica, as far as sixteen requests can tell."""
    try:
        return all(ask(asker, model, 2) for _ in range(16))
    except openai.NotFoundError:
        return False
