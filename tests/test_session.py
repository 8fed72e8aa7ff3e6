"""A local Ray session: on loopback alone, and nothing of it obeys who has no token."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).parent
AGENTS_WITHIN_SECONDS = 60


def listening(process):
    """The addresses that a process and its descendants listen on: (ip, port) → name of the process."""
    found = {}
    for one in (process, *process.children(recursive=True)):
        try:
            sockets = one.net_connections("inet")
            found |= {tuple(s.laddr): one.name() for s in sockets if s.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return found


def settled(process):
    """The same, once Ray's agents, which come up later than the session, listen. The one of jobs has a fixed port and
    doesn't where another session of this machine has taken that."""
    deadline = time.monotonic() + AGENTS_WITHIN_SECONDS
    while True:
        found = listening(process)
        names = list(found.values())
        if {"gcs_server", "raylet", "ray::RuntimeEnvAgent"} <= set(names) and names.count("ray::DashboardAgent") >= 2:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def is_loopback(ip):
    return ip.removeprefix("::ffff:") in ("127.0.0.1", "::1")


def http_status(port, path, body):
    """The answer's status to one without a token; None from a port that isn't HTTP's."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None
    except Exception as error:
        assert type(error).__name__ == "BadStatusLine", repr(error)
        return None


def grpc_status(port, method):
    """The answer's status to a call without a token."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(method)(b"", timeout=5)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


SERVICES = {
    "gcs_server": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
    "ray::": "/ray.rpc.CoreWorkerService/PushTask",
    "ray::DashboardAgent": "/ray.rpc.ReporterService/GetTraceback",
}
"""A call of each kind of process by which state is read or code runs."""
BEGINS = """
import os, sys, time
from raytune_llm import cluster, session

cluster.connect(dashboard=True)
import ray
print("took:", ray.get(ray.remote(lambda: 1).remote()), os.environ["RAY_AUTH_TOKEN"], flush=True)
sys.stdin.readline()
print("ended:", session.end(), "RAY_AUTH_TOKEN" in os.environ, "RAY_AUTH_MODE" in os.environ, flush=True)
"""


def environment(home, **more):
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**own, "HOME": str(home), "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", **more}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A program that has started a session as jobs do, its token, and its home."""
    home = tmp_path_factory.mktemp("home")
    (home / "program.py").write_text(BEGINS)
    with subprocess.Popen(
        [sys.executable, home / "program.py"],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        _, result, token = process.stdout.readline().split()
        assert result == "1" and len(token) == 64
        yield psutil.Process(process.pid), token, home
        output, _ = process.communicate("end\n", timeout=60)
    assert output == "ended: True False False\n" and process.returncode == 0


def test_a_local_session_listens_on_loopback_alone_and_refuses_who_has_no_token(driver):
    process, token, home = driver
    found = settled(process)
    assert not {address: name for address, name in found.items() if not is_loopback(address[0])}
    job = json.dumps({"entrypoint": f"touch {home}/ran"}).encode()
    posted = {http_status(port, "/api/job_agent/jobs/", job) for _, port in found}
    assert posted == {401, 405, None}  # 405: exporters of metrics, which take no POST
    assert {http_status(port, "/api/jobs/", job) for _, port in found} == {401, 405, None}
    for name, method in SERVICES.items():
        called = {grpc_status(port, method) for (_, port), found_name in found.items() if found_name.startswith(name)}
        assert "UNAUTHENTICATED" in called and "OK" not in called, (name, called)
    assert not (home / "ran").exists() and not (home / ".ray").exists()
    family = [process, *process.children(recursive=True)]
    assert not [one for one in family if token in " ".join(one.cmdline())]


def test_a_local_session_has_the_dashboard_that_is_requested(driver):
    process, _, _ = driver
    lines = [" ".join(child.cmdline()) for child in process.children(recursive=True)]
    assert sum("dashboard-NodeHead" in line for line in lines) == 1


AUTHENTICATES = """
import json, os, sys
from raytune_llm import compat, session
from raytune_llm.errors import InputError

names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
for given in json.loads(sys.argv[1]):
    os.environ |= given
    try:
        session.authenticate()
        print({name: os.environ.get(name) for name in names}, compat.needs_ray_token())
    except InputError as error:
        print(error)
    session.forget_token()
    assert {name: os.environ[name] for name in names if name in os.environ} == given
    for name in given:
        del os.environ[name]
"""


def test_the_users_own_token_and_mode_are_kept(tmp_path):
    cases = [
        {"RAY_AUTH_TOKEN": "mine-0123456789"},
        {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "mine"},
        {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")},
    ]
    (tmp_path / "token").write_text("one-in-a-file")
    (tmp_path / "program.py").write_text(AUTHENTICATES)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", json.dumps(cases)],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    own, in_file, warning, disabled, unreadable = done.stdout.splitlines()
    assert own == "{'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': 'mine-0123456789', 'RAY_AUTH_TOKEN_PATH': None} True"
    assert in_file == (
        f"{{'RAY_AUTH_MODE': 'token', 'RAY_AUTH_TOKEN': None, 'RAY_AUTH_TOKEN_PATH': '{tmp_path}/token'}} True"
    )
    assert warning == (
        "! RAY_AUTH_MODE=disabled: all users of this machine, and all who reach the port of an endpoint's replica, can "
        "run commands as you through Ray; unset RAY_AUTH_MODE to have it ask for a token"
    )
    assert disabled == "{'RAY_AUTH_MODE': 'disabled', 'RAY_AUTH_TOKEN': 'mine', 'RAY_AUTH_TOKEN_PATH': None} False"
    assert unreadable == (
        f"RAY_AUTH_TOKEN_PATH={tmp_path}/nowhere names no file with a token; unset it, or have one made by "
        "`ray get-auth-token --generate`"
    )
